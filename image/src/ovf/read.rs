// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads an OVF descriptor of any maker, far enough to judge whether vSphere would import it.
//!
//! A small tree is built (`tree`) and then examined. What is not known is left alone: OVF is open to other makers'
//! sections.

use super::tree::{Element, tree};
use crate::error::Fault;
use crate::spec::HARDWARE_VERSIONS;

/// Largest descriptor read; VMware's vCenter has 0.5 MB.
pub const OVF_SIZE_MAX: u64 = 16 << 20;

/// A file named in `References`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileReference {
    /// Identity within the descriptor.
    pub id: String,
    /// Name in the OVA.
    pub href: String,
    /// Size in bytes, where given.
    pub size: Option<u64>,
    /// Whether the file is given in chunks or compressed on top; such files are not compared.
    pub transformed: bool,
}

/// A disk of the `DiskSection`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Disk {
    /// Identity within the descriptor.
    pub id: String,
    /// The file it comes from; none for a disk that is made empty.
    pub file: Option<String>,
    /// Size in bytes, where it is a number.
    pub capacity: Option<u64>,
    /// Format of the file.
    pub format: String,
}

/// An item of virtual hardware.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct HardwareItem {
    /// Identity within the section.
    pub id: String,
    /// CIM resource type.
    pub kind: u32,
    /// Model.
    pub sub_type: String,
    /// Name for people.
    pub name: String,
    /// The controller it hangs on.
    pub parent: Option<String>,
    /// What it is backed by.
    pub host_resource: Option<String>,
    /// How much of it.
    pub quantity: Option<u64>,
    /// The network it is connected to.
    pub connection: Option<String>,
}

/// What a descriptor says.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Ovf {
    /// Name of the virtual machine.
    pub name: String,
    /// Product, vendor and version.
    pub product: Vec<String>,
    /// Hardware families, such as `vmx-13`.
    pub families: Vec<String>,
    /// Guest identifier.
    pub guest_os: String,
    /// How properties reach the guest.
    pub transport: String,
    /// Files.
    pub files: Vec<FileReference>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Networks.
    pub networks: Vec<String>,
    /// Virtual hardware.
    pub items: Vec<HardwareItem>,
    /// `vmw:ExtraConfig` entries.
    pub extra_config: Vec<(String, String)>,
    /// `vmw:Config` entries of the machine.
    pub config: Vec<(String, String)>,
    /// Keys of the properties.
    pub properties: Vec<String>,
}

const OVF_NS: &str = "http://schemas.dmtf.org/ovf/envelope/1";
const VMW_NS: &str = "http://www.vmware.com/schema/ovf";

/// Parses a descriptor.
///
/// # Errors
/// One fault, when the text is no OVF at all.
pub fn parse(bytes: &[u8]) -> Result<(Ovf, Vec<Fault>), Fault> {
    let root = tree(bytes).map_err(|(offset, text)| Fault {
        code: "ovf-xml",
        offset: Some(offset),
        text,
    })?;
    if root.name != "Envelope" || root.namespace != OVF_NS {
        let text = format!(
            "the document is <{}> of {:?}, expected an OVF 1 <Envelope>",
            root.name, root.namespace
        );
        return Err(Fault {
            code: "ovf-xml",
            offset: None,
            text,
        });
    }
    let mut faults = Vec::new();
    let ovf = extract(&root, &mut faults);
    judge(&root, &ovf, &mut faults);
    Ok((ovf, faults))
}

fn extract(root: &Element, faults: &mut Vec<Fault>) -> Ovf {
    let mut ovf = Ovf::default();
    let owned = |element: &Element, name: &str| element.attribute(name).unwrap_or_default().to_owned();
    for file in root
        .child("References")
        .iter()
        .flat_map(|references| references.all("File"))
    {
        if let Some(size) = file.attribute("size").filter(|size| number(size).is_none()) {
            let id = owned(file, "id");
            let text = format!("file {id}: size {size:?} is no number of bytes");
            faults.push(new_fault("ovf-file", text));
        }
        ovf.files.push(FileReference {
            id: owned(file, "id"),
            href: owned(file, "href"),
            size: file.attribute("size").and_then(number),
            transformed: file.attribute("chunkSize").is_some()
                || file.attribute("compression").is_some_and(|c| c != "identity"),
        });
    }
    for disk in root
        .child("DiskSection")
        .iter()
        .flat_map(|section| section.all("Disk"))
    {
        let units = disk.attribute("capacityAllocationUnits").unwrap_or("byte");
        let capacity = disk.attribute("capacity").unwrap_or_default();
        let bytes = match (number(capacity), unit_size(units)) {
            (Some(count), Some(unit)) => count.checked_mul(unit),
            _ => None,
        };
        if bytes.is_none() && !capacity.starts_with("${") {
            let text = format!(
                "disk {}: capacity {capacity:?} in units of {units:?} is no size",
                owned(disk, "diskId")
            );
            faults.push(new_fault("ovf-disk", text));
        }
        if let Some(populated) = disk.attribute("populatedSize") {
            let id = owned(disk, "diskId");
            // What describes a disk may add a little to what it holds, but not as much again.
            let wrong = match (number(populated), bytes) {
                (None, _) => Some("is no number of bytes".to_owned()),
                (Some(held), Some(bytes)) if held / 2 > bytes => {
                    Some(format!("is more than the disk's {bytes} bytes can hold"))
                }
                _ => None,
            };
            let fault = wrong.map(|wrong| format!("disk {id}: populatedSize {populated:?} {wrong}"));
            faults.extend(fault.map(|text| new_fault("ovf-disk", text)));
        }
        ovf.disks.push(Disk {
            id: owned(disk, "diskId"),
            file: disk.attribute("fileRef").map(str::to_owned),
            capacity: bytes,
            format: owned(disk, "format"),
        });
    }
    let networks = root.child("NetworkSection");
    ovf.networks = networks
        .iter()
        .flat_map(|section| section.all("Network"))
        .map(|network| owned(network, "name"))
        .collect();
    let Some(system) = root.child("VirtualSystem") else {
        let text =
            "there is no <VirtualSystem>: nothing to import, or a vApp of several, which is not examined";
        faults.push(new_fault("ovf-system", text.to_owned()));
        return ovf;
    };
    ovf.name = system.child_text("Name");
    ovf.guest_os = system
        .child("OperatingSystemSection")
        .map(|section| owned(section, "osType"))
        .unwrap_or_default();
    let mut keys: Vec<[&str; 3]> = Vec::new();
    for section in system.all("ProductSection") {
        for property in section.all("Property") {
            let [class, instance] =
                ["class", "instance"].map(|name| section.attribute(name).unwrap_or_default());
            let key = [class, property.attribute("key").unwrap_or_default(), instance];
            if keys.contains(&key) {
                let text = format!("the property {:?} is given twice", key[1]);
                faults.push(new_fault("ovf-property", text));
            }
            keys.push(key);
        }
        let facts = ["Product", "Vendor", "Version"].map(|name| section.child_text(name));
        ovf.product
            .extend(facts.into_iter().filter(|text| !text.is_empty()));
        ovf.properties
            .extend(section.all("Property").map(|property| owned(property, "key")));
    }
    if let Some(hardware) = system.child("VirtualHardwareSection") {
        ovf.transport = owned(hardware, "transport");
        let families = hardware
            .child("System")
            .map(|system| system.child_text("VirtualSystemType"))
            .unwrap_or_default();
        ovf.families = families.split_whitespace().map(str::to_owned).collect();
        ovf.items = hardware.all("Item").map(hardware_item).collect();
        for item in hardware.all("Item") {
            for name in ["ResourceType", "VirtualQuantity"] {
                let text = item.child_text(name);
                if number(&text).is_none() && !text.is_empty() {
                    let id = item.child_text("InstanceID");
                    faults.push(new_fault(
                        "ovf-item",
                        format!("item {id}: {name} {text:?} is no number"),
                    ));
                }
            }
        }
        let pair = |element: &Element| (owned(element, "key"), owned(element, "value"));
        ovf.extra_config = hardware.all("ExtraConfig").map(pair).collect();
        ovf.config = hardware.all("Config").map(pair).collect();
    }
    ovf
}

fn new_fault(code: &'static str, text: String) -> Fault {
    Fault {
        code,
        offset: None,
        text,
    }
}

/// A number as XML has it: digits alone.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn hardware_item(item: &Element) -> HardwareItem {
    let optional = |name: &str| Some(item.child_text(name)).filter(|text| !text.is_empty());
    HardwareItem {
        id: item.child_text("InstanceID"),
        kind: item.child_text("ResourceType").parse().unwrap_or(0),
        sub_type: item.child_text("ResourceSubType"),
        name: item.child_text("ElementName"),
        parent: optional("Parent"),
        host_resource: optional("HostResource"),
        quantity: optional("VirtualQuantity").and_then(|text| text.parse().ok()),
        connection: optional("Connection"),
    }
}

/// Size of an allocation unit: `byte`, or `byte * 2^20` with any spacing.
fn unit_size(units: &str) -> Option<u64> {
    let compact: String = units.chars().filter(|c| !c.is_whitespace()).collect();
    match compact.strip_prefix("byte")? {
        "" => Some(1),
        power => 1u64.checked_shl(
            power
                .strip_prefix("*2^")?
                .parse()
                .ok()
                .filter(|shift| *shift < 64)?,
        ),
    }
}

fn judge(root: &Element, ovf: &Ovf, faults: &mut Vec<Fault>) {
    let mut fault = |code: &'static str, text: String| {
        faults.push(Fault {
            code,
            offset: None,
            text,
        })
    };
    let order = ["References", "DiskSection", "NetworkSection", "VirtualSystem"];
    let places: Vec<usize> = order
        .iter()
        .filter_map(|name| root.children.iter().position(|child| child.name == *name))
        .collect();
    if !places.is_sorted() {
        fault(
            "ovf-order",
            format!("the sections are not in the order {}", order.join(", ")),
        );
    }
    let system = root.child("VirtualSystem");
    for section in root
        .children
        .iter()
        .chain(system.iter().flat_map(|system| &system.children))
    {
        let known = [OVF_NS, VMW_NS].contains(&section.namespace.as_str());
        let required = section.attribute("required").unwrap_or("true");
        if !known && !["false", "0"].contains(&required) {
            let text = format!(
                "<{}> of {:?} is required, and vSphere does not know it: \"Unsupported element '{}'\"",
                section.name, section.namespace, section.name
            );
            fault("ovf-section", text);
        }
    }
    for family in &ovf.families {
        let known = family
            .strip_prefix("vmx-")
            .and_then(|number| number.parse::<u32>().ok());
        let takes = |known: u32| known < 10 || HARDWARE_VERSIONS.iter().any(|(version, _)| *version == known);
        if !known.is_some_and(takes) {
            fault(
                "ovf-family",
                format!(
                    "hardware family {family:?} is none that ESXi takes: \"Unsupported hardware family\""
                ),
            );
        }
    }
    if ovf.families.is_empty() && !ovf.items.is_empty() {
        fault(
            "ovf-family",
            "no hardware family (VirtualSystemType) is given".to_owned(),
        );
    }
    for disk in &ovf.disks {
        if let Some(file) = &disk.file
            && !ovf.files.iter().any(|known| known.id == *file)
        {
            fault(
                "ovf-disk",
                format!(
                    "disk {} is to come from file {file:?}, which References does not list",
                    disk.id
                ),
            );
        }
        if disk.file.is_some() && !disk.format.ends_with("#streamOptimized") {
            fault(
                "ovf-disk",
                format!(
                    "disk {} has the format {:?}, expected {}",
                    disk.id,
                    disk.format,
                    super::STREAM_OPTIMIZED
                ),
            );
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for item in &ovf.items {
        let label = format!("item {} ({})", item.id, item.name);
        if seen.contains(&item.id.as_str()) || item.id.is_empty() {
            fault(
                "ovf-item",
                format!("{label}: the InstanceID is missing or given twice"),
            );
        }
        seen.push(&item.id);
        if let Some(parent) = &item.parent {
            let controller = ovf.items.iter().find(|other| other.id == *parent);
            if !controller.is_some_and(|controller| matches!(controller.kind, 5 | 6 | 20 | 23)) {
                let text = format!(
                    "{label}: its parent {parent:?} is no controller: \"Parent does not refer to a DiskControllerReference\""
                );
                fault("ovf-item", text);
            }
        }
        if let (3 | 4, Some(0) | None) = (item.kind, item.quantity) {
            let what = if item.kind == 3 { "processors" } else { "memory" };
            let count = item
                .quantity
                .map_or("no number".to_owned(), |count| count.to_string());
            let text = format!("{label}: the virtual machine gets {count} of {what}, expected at least 1");
            fault("ovf-item", text);
        }
        if item.kind == 17 {
            let named = item
                .host_resource
                .as_deref()
                .and_then(|resource| resource.rsplit("/disk/").next());
            if !ovf.disks.iter().any(|disk| Some(disk.id.as_str()) == named) {
                let text = match &item.host_resource {
                    Some(resource) => format!("{label}: HostResource {resource:?} names no disk"),
                    None => format!("{label}: HostResource is missing, so the disk is none"),
                };
                fault("ovf-item", text);
            }
        }
        if item.kind == 10
            && !ovf
                .networks
                .iter()
                .any(|network| Some(network) == item.connection.as_ref())
        {
            let text = match &item.connection {
                Some(network) => {
                    format!("{label}: connected to {network:?}, which NetworkSection does not list")
                }
                None => format!("{label}: it is connected to no network: Connection is missing"),
            };
            fault("ovf-item", text);
        }
        if item.kind == 6
            && !["VirtualSCSI", "lsilogic", "lsilogicsas", "buslogic"].contains(&item.sub_type.as_str())
        {
            fault(
                "ovf-item",
                format!(
                    "{label}: {:?} is no SCSI controller of VMware (the case matters)",
                    item.sub_type
                ),
            );
        }
        if item.kind == 5 && !item.sub_type.is_empty() {
            fault(
                "ovf-item",
                format!(
                    "{label}: an IDE controller with the subtype {:?}: \"VALUE_ILLEGAL\"",
                    item.sub_type
                ),
            );
        }
    }
    for name in ["StorageItem", "EthernetPortItem"] {
        let hardware = root
            .child("VirtualSystem")
            .and_then(|system| system.child("VirtualHardwareSection"));
        if hardware.is_some_and(|hardware| hardware.child(name).is_some()) {
            fault(
                "ovf-item",
                format!("<{name}> is of OVF 2.0: \"Unsupported element '{name}'\""),
            );
        }
    }
}
