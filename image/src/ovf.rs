// SPDX-License-Identifier: MIT OR Apache-2.0
//! The OVF descriptor: rendered in the shape VMware's own appliances have, and read from any maker.
//!
//! Rendering keeps to what was seen in VMware's files, not to what DSP0243 would allow: OVF 1 elements only, children
//! of an `Item` in alphabetical order with `vmw:Config` after them, `ResourceSubType` `VirtualSCSI` in camel case,
//! `disk.EnableUUID` as an `ExtraConfig` without `ovf:required`, so that an importer that cannot honour it stops.

pub mod read;
mod tree;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use crate::spec::{Firmware, ImageSpec};

/// Format of a disk in an OVA.
pub const STREAM_OPTIMIZED: &str =
    "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";

/// The disk of the appliance as the OVF has to describe it.
#[derive(Debug, Clone)]
pub struct OvfDisk {
    /// File name in the OVA.
    pub href: String,
    /// Exact size of that file in bytes.
    pub file_size: u64,
    /// Size of the virtual disk in bytes.
    pub capacity: u64,
    /// Bytes of the virtual disk that hold data, in whole grains.
    pub populated: u64,
}

type Xml = Writer<Vec<u8>>;
type Attributes<'a> = &'a [(&'a str, &'a str)];
type Fallible = std::io::Result<()>;

/// Renders the descriptor.
///
/// # Errors
/// Only when the text could not be put together in memory.
pub fn render(spec: &ImageSpec, firmware: Firmware, disk: &OvfDisk) -> std::io::Result<Vec<u8>> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let namespaces = [
        ("xmlns", "http://schemas.dmtf.org/ovf/envelope/1"),
        ("xmlns:cim", "http://schemas.dmtf.org/wbem/wscim/1/common"),
        ("xmlns:ovf", "http://schemas.dmtf.org/ovf/envelope/1"),
        (
            "xmlns:rasd",
            "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData",
        ),
        ("xmlns:vmw", "http://www.vmware.com/schema/ovf"),
        (
            "xmlns:vssd",
            "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData",
        ),
        ("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance"),
    ];
    parent(&mut xml, "Envelope", &namespaces, |xml| {
        references(xml, disk)?;
        network_section(xml, spec)?;
        parent(xml, "VirtualSystem", &[("ovf:id", &spec.name)], |xml| {
            leaf(xml, "Info", &[], "A virtual machine")?;
            leaf(xml, "Name", &[], &spec.product.name)?;
            let cim = spec.hardware.cim_os.to_string();
            let system = [("ovf:id", cim.as_str()), ("vmw:osType", &spec.hardware.guest_os)];
            parent(xml, "OperatingSystemSection", &system, |xml| {
                leaf(xml, "Info", &[], "The kind of installed guest operating system")
            })?;
            hardware_section(xml, spec, firmware)?;
            product_section(xml, spec)?;
            parent(xml, "AnnotationSection", &[], |xml| {
                leaf(xml, "Info", &[], "A human-readable annotation")?;
                leaf(xml, "Annotation", &[], &spec.product.annotation)
            })
        })
    })?;
    let mut bytes = xml.into_inner();
    bytes.push(b'\n');
    Ok(bytes)
}

fn references(xml: &mut Xml, disk: &OvfDisk) -> Fallible {
    let (size, capacity, populated) = (
        disk.file_size.to_string(),
        disk.capacity.to_string(),
        disk.populated.to_string(),
    );
    parent(xml, "References", &[], |xml| {
        empty(
            xml,
            "File",
            &[("ovf:href", &disk.href), ("ovf:id", "file1"), ("ovf:size", &size)],
        )
    })?;
    parent(xml, "DiskSection", &[], |xml| {
        leaf(xml, "Info", &[], "Virtual disk information")?;
        let attributes = [
            ("ovf:capacity", capacity.as_str()),
            ("ovf:capacityAllocationUnits", "byte"),
            ("ovf:diskId", "vmdisk1"),
            ("ovf:fileRef", "file1"),
            ("ovf:format", STREAM_OPTIMIZED),
            ("ovf:populatedSize", &populated),
        ];
        empty(xml, "Disk", &attributes)
    })
}

fn network_section(xml: &mut Xml, spec: &ImageSpec) -> Fallible {
    parent(xml, "NetworkSection", &[], |xml| {
        leaf(xml, "Info", &[], "The list of logical networks")?;
        parent(xml, "Network", &[("ovf:name", &spec.hardware.network)], |xml| {
            leaf(
                xml,
                "Description",
                &[],
                "The network that protected machines and their relays reach",
            )
        })
    })
}

fn hardware_section(xml: &mut Xml, spec: &ImageSpec, firmware: Firmware) -> Fallible {
    let hardware = &spec.hardware;
    // guestInfo for appliances with tools in time; the ISO works before any tools run.
    let transport = [("ovf:transport", "com.vmware.guestInfo iso")];
    parent(xml, "VirtualHardwareSection", &transport, |xml| {
        leaf(xml, "Info", &[], "Virtual hardware requirements")?;
        parent(xml, "System", &[], |xml| {
            leaf(xml, "vssd:ElementName", &[], "Virtual Hardware Family")?;
            leaf(xml, "vssd:InstanceID", &[], "0")?;
            leaf(xml, "vssd:VirtualSystemIdentifier", &[], &spec.name)?;
            leaf(
                xml,
                "vssd:VirtualSystemType",
                &[],
                &format!("vmx-{:02}", hardware.vmx),
            )
        })?;
        let mut items = Items { next: 0 };
        let cpus = hardware.vcpus.to_string();
        items.add(
            xml,
            None,
            &[
                ("AllocationUnits", "hertz * 10^6"),
                ("Description", "Number of Virtual CPUs"),
                ("ElementName", &format!("{cpus} virtual CPU(s)")),
                ("ResourceType", "3"),
                ("VirtualQuantity", &cpus),
            ],
            &[],
        )?;
        let memory = hardware.memory_mib.to_string();
        items.add(
            xml,
            None,
            &[
                ("AllocationUnits", "byte * 2^20"),
                ("Description", "Memory Size"),
                ("ElementName", &format!("{memory}MB of memory")),
                ("ResourceType", "4"),
                ("VirtualQuantity", &memory),
            ],
            &[],
        )?;
        // Empty controllers are room for hot-adding: VMware's vCenter appliance ships them the same way.
        let mut first_controller = String::new();
        for number in 0..hardware.scsi_controllers {
            let id = items.add(
                xml,
                None,
                &[
                    ("Address", &number.to_string()),
                    ("Description", "SCSI Controller"),
                    ("ElementName", &format!("SCSI Controller {number}")),
                    ("ResourceSubType", hardware.scsi.sub_type()),
                    ("ResourceType", "6"),
                ],
                &[],
            )?;
            if number == 0 {
                first_controller = id;
            }
        }
        // No subtype here: importers refuse the names that other makers put in ("PIIX4").
        let ide = items.add(
            xml,
            None,
            &[
                ("Address", "0"),
                ("Description", "IDE Controller"),
                ("ElementName", "VirtualIDEController 0"),
                ("ResourceType", "5"),
            ],
            &[],
        )?;
        items.add(
            xml,
            Some("false"),
            &[
                ("AddressOnParent", "0"),
                ("AutomaticAllocation", "false"),
                ("ElementName", "CD-ROM 1"),
                ("Parent", &ide),
                ("ResourceSubType", "vmware.cdrom.remotepassthrough"),
                ("ResourceType", "15"),
            ],
            &[("backing.exclusive", "false")],
        )?;
        items.add(
            xml,
            None,
            &[
                ("AddressOnParent", "0"),
                ("ElementName", "Hard Disk 1"),
                ("HostResource", "ovf:/disk/vmdisk1"),
                ("Parent", &first_controller),
                ("ResourceType", "17"),
            ],
            &[("backing.writeThrough", "false")],
        )?;
        items.add(
            xml,
            None,
            &[
                ("AddressOnParent", "7"),
                ("AutomaticAllocation", "true"),
                ("Connection", &hardware.network),
                (
                    "Description",
                    &format!("{} ethernet adapter", hardware.nic.sub_type()),
                ),
                ("ElementName", "Ethernet 1"),
                ("ResourceSubType", hardware.nic.sub_type()),
                ("ResourceType", "10"),
            ],
            &[("wakeOnLanEnabled", "true")],
        )?;
        empty(
            xml,
            "vmw:ExtraConfig",
            &[("vmw:key", "disk.EnableUUID"), ("vmw:value", "TRUE")],
        )?;
        let secure_boot = hardware.secure_boot && firmware == Firmware::Efi;
        let mut settings = vec![
            ("cpuHotAddEnabled", "false"),
            ("firmware", firmware.as_str()),
            ("memoryHotAddEnabled", "false"),
            ("tools.syncTimeWithHost", "false"),
        ];
        if secure_boot {
            settings.insert(0, ("bootOptions.efiSecureBootEnabled", "true"));
        }
        configs(xml, &settings)
    })
}

fn product_section(xml: &mut Xml, spec: &ImageSpec) -> Fallible {
    let product = &spec.product;
    parent(xml, "ProductSection", &[], |xml| {
        leaf(xml, "Info", &[], "Information about the installed software")?;
        leaf(xml, "Product", &[], &product.name)?;
        leaf(xml, "Vendor", &[], &product.vendor)?;
        leaf(xml, "Version", &[], &spec.version)?;
        leaf(xml, "FullVersion", &[], &spec.version)?;
        for (element, url) in [
            ("ProductUrl", &product.product_url),
            ("VendorUrl", &product.vendor_url),
        ] {
            if !url.is_empty() {
                leaf(xml, element, &[], url)?;
            }
        }
        let mut category = "";
        for property in &spec.properties {
            if property.category != category {
                category = &property.category;
                leaf(xml, "Category", &[], category)?;
            }
            let mut attributes = vec![("ovf:key", property.key.as_str())];
            if property.password {
                attributes.push(("ovf:password", "true"));
            }
            if !property.qualifiers.is_empty() {
                attributes.push(("ovf:qualifiers", &property.qualifiers));
            }
            attributes.push(("ovf:type", property.kind.as_str()));
            attributes.push(("ovf:userConfigurable", "true"));
            attributes.push(("ovf:value", &property.value));
            parent(xml, "Property", &attributes, |xml| {
                leaf(xml, "Label", &[], &property.label)?;
                leaf(xml, "Description", &[], &property.description)
            })?;
        }
        Ok(())
    })
}

/// Numbers the items and sorts their children.
struct Items {
    next: u32,
}

impl Items {
    fn add(
        &mut self,
        xml: &mut Xml,
        required: Option<&str>,
        children: Attributes<'_>,
        settings: Attributes<'_>,
    ) -> std::io::Result<String> {
        self.next += 1;
        let id = self.next.to_string();
        let mut children = children.to_vec();
        children.push(("InstanceID", &id));
        children.sort_unstable();
        let attributes: Vec<_> = required
            .map(|required| ("ovf:required", required))
            .into_iter()
            .collect();
        parent(xml, "Item", &attributes, |xml| {
            children
                .iter()
                .try_for_each(|(name, value)| leaf(xml, &format!("rasd:{name}"), &[], value))?;
            configs(xml, settings)
        })?;
        Ok(id)
    }
}

fn configs(xml: &mut Xml, settings: Attributes<'_>) -> Fallible {
    settings.iter().try_for_each(|(key, value)| {
        empty(
            xml,
            "vmw:Config",
            &[("ovf:required", "false"), ("vmw:key", key), ("vmw:value", value)],
        )
    })
}

fn parent(
    xml: &mut Xml,
    name: &str,
    attributes: Attributes<'_>,
    inner: impl FnOnce(&mut Xml) -> Fallible,
) -> Fallible {
    xml.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_inner_content(inner)
        .map(|_| ())
}

fn leaf(xml: &mut Xml, name: &str, attributes: Attributes<'_>, text: &str) -> Fallible {
    let element = xml
        .create_element(name)
        .with_attributes(attributes.iter().copied());
    element.write_text_content(BytesText::new(text)).map(|_| ())
}

fn empty(xml: &mut Xml, name: &str, attributes: Attributes<'_>) -> Fallible {
    xml.create_element(name)
        .with_attributes(attributes.iter().copied())
        .write_empty()
        .map(|_| ())
}

#[cfg(test)]
mod tests;
