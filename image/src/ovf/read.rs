// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads an OVF descriptor of any maker, far enough to judge whether vSphere would import it.
//!
//! A small tree is built and then examined; entities beyond XML's own and document types are refused, nothing is
//! fetched. What is not known is left alone: OVF is open to other makers' sections.

use quick_xml::NsReader;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;

use crate::error::Fault;
use crate::spec::HARDWARE_VERSIONS;

/// Largest descriptor read; VMware's vCenter has 0.5 MB.
pub const OVF_SIZE_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 64;

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

#[derive(Debug, Default)]
struct Element {
    namespace: String,
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn child_text(&self, name: &str) -> String {
        self.child(name)
            .map(|child| child.text.trim().to_owned())
            .unwrap_or_default()
    }
}

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

fn tree(bytes: &[u8]) -> Result<Element, (u64, String)> {
    let mut reader = NsReader::from_reader(bytes);
    reader.config_mut().check_end_names = true;
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    loop {
        let at = reader.buffer_position();
        let fail = |text: String| (at, text);
        match reader
            .read_event()
            .map_err(|error| fail(format!("not well-formed XML: {error}")))?
        {
            Event::Start(start) => {
                if open.len() >= DEPTH_MAX || root.is_some() {
                    return Err(fail(
                        "elements nested too deeply, or behind the end of the document".to_owned(),
                    ));
                }
                open.push(element(&reader, &start).map_err(fail)?);
            }
            Event::Empty(start) => {
                let element = element(&reader, &start).map_err(fail)?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Err(fail("the document is empty".to_owned())),
                }
            }
            Event::End(_) => {
                let element = open.pop().ok_or_else(|| fail("an end tag too many".to_owned()))?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => root = Some(element),
                }
            }
            Event::Text(text) => {
                let text = text
                    .decode()
                    .map_err(|error| fail(format!("not UTF-8: {error}")))?;
                match open.last_mut() {
                    Some(element) => element.text.push_str(&text),
                    None if text.trim_matches(['\u{feff}', ' ', '\n', '\r', '\t']).is_empty() => {}
                    None => return Err(fail("text outside of the document".to_owned())),
                }
            }
            Event::GeneralRef(reference) => {
                let name = reference
                    .decode()
                    .map_err(|error| fail(format!("not UTF-8: {error}")))?;
                let resolved = match reference.resolve_char_ref() {
                    Ok(Some(character)) => character,
                    _ => match &*name {
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        "quot" => '"',
                        "apos" => '\'',
                        other => return Err(fail(format!("the entity &{other}; is not one of XML's own"))),
                    },
                };
                if let Some(element) = open.last_mut() {
                    element.text.push(resolved);
                }
            }
            Event::CData(data) => {
                let text = data
                    .decode()
                    .map_err(|error| fail(format!("not UTF-8: {error}")))?;
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text);
                }
            }
            Event::DocType(_) => return Err(fail("a document type is not taken".to_owned())),
            Event::Eof => break,
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
        }
    }
    match (root, open.is_empty()) {
        (Some(root), true) => Ok(root),
        _ => Err((reader.buffer_position(), "the document ends too soon".to_owned())),
    }
}

fn element(reader: &NsReader<&[u8]>, start: &BytesStart<'_>) -> Result<Element, String> {
    let (namespace, name) = reader.resolver().resolve_element(start.name());
    let namespace = match namespace {
        ResolveResult::Bound(namespace) => String::from_utf8_lossy(namespace.as_ref()).into_owned(),
        ResolveResult::Unbound => String::new(),
        ResolveResult::Unknown(prefix) => {
            return Err(format!(
                "the prefix {:?} is not declared",
                String::from_utf8_lossy(&prefix)
            ));
        }
    };
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| format!("a damaged attribute: {error}"))?;
        let value = attribute
            .unescape_value()
            .map_err(|error| format!("a damaged attribute: {error}"))?;
        let key = String::from_utf8_lossy(attribute.key.local_name().as_ref()).into_owned();
        attributes.push((key, value.into_owned()));
    }
    Ok(Element {
        namespace,
        name: String::from_utf8_lossy(name.as_ref()).into_owned(),
        attributes,
        ..Element::default()
    })
}

fn extract(root: &Element, faults: &mut Vec<Fault>) -> Ovf {
    let mut ovf = Ovf::default();
    let owned = |element: &Element, name: &str| element.attribute(name).unwrap_or_default().to_owned();
    for file in root
        .child("References")
        .iter()
        .flat_map(|references| references.all("File"))
    {
        ovf.files.push(FileReference {
            id: owned(file, "id"),
            href: owned(file, "href"),
            size: file.attribute("size").and_then(|size| size.parse().ok()),
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
        let bytes = match (capacity.parse::<u64>(), unit_size(units)) {
            (Ok(number), Some(unit)) => number.checked_mul(unit),
            _ => None,
        };
        if bytes.is_none() && !capacity.starts_with("${") {
            let text = format!(
                "disk {}: capacity {capacity:?} in units of {units:?} is no size",
                owned(disk, "diskId")
            );
            faults.push(Fault {
                code: "ovf-disk",
                offset: None,
                text,
            });
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
        faults.push(Fault {
            code: "ovf-system",
            offset: None,
            text: text.to_owned(),
        });
        return ovf;
    };
    ovf.name = system.child_text("Name");
    ovf.guest_os = system
        .child("OperatingSystemSection")
        .map(|section| owned(section, "osType"))
        .unwrap_or_default();
    for section in system.all("ProductSection") {
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
        let pair = |element: &Element| (owned(element, "key"), owned(element, "value"));
        ovf.extra_config = hardware.all("ExtraConfig").map(pair).collect();
        ovf.config = hardware.all("Config").map(pair).collect();
    }
    ovf
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
        if item.kind == 17 {
            let named = item
                .host_resource
                .as_deref()
                .and_then(|resource| resource.rsplit("/disk/").next());
            if !ovf.disks.iter().any(|disk| Some(disk.id.as_str()) == named) {
                fault(
                    "ovf-item",
                    format!("{label}: HostResource {:?} names no disk", item.host_resource),
                );
            }
        }
        if item.kind == 10
            && !ovf
                .networks
                .iter()
                .any(|network| Some(network) == item.connection.as_ref())
        {
            fault(
                "ovf-item",
                format!(
                    "{label}: connected to {:?}, which NetworkSection does not list",
                    item.connection
                ),
            );
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
