// SPDX-License-Identifier: MIT OR Apache-2.0
//! The OVF environment: an XML document of at most 256 KiB that the hypervisor hands to the machine, with the
//! properties that were given at deployment (DSP0243, section 9.5).
//!
//! ```xml
//! <Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1">
//!   <PropertySection>
//!     <Property oe:key="guestinfo.hostname" oe:value="mt1.example.org"/>
//!   </PropertySection>
//! </Environment>
//! ```
//!
//! It is data of a stranger: nothing in it is run, entities are not expanded but the five of XML itself.

use std::collections::BTreeMap;

use quick_xml::Reader;
use quick_xml::events::Event;

/// Largest document that is read.
pub const BYTES_MAX: usize = 256 << 10;

/// Properties: key and value.
pub type Properties = BTreeMap<String, String>;

/// Reads the properties of a document. The same key given twice is an error, since it is in doubt which one is meant.
///
/// # Errors
/// What is wrong with the document, and where.
pub fn parse(bytes: &[u8]) -> Result<Properties, String> {
    if bytes.len() > BYTES_MAX {
        return Err(format!(
            "it has {} bytes, the most that is read is {BYTES_MAX}",
            bytes.len()
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| format!("it is no UTF-8 text: {error}"))?;
    // VMware ends the text with a zero byte in some versions.
    let mut reader = Reader::from_str(text.trim_end_matches('\0'));
    let mut properties = Properties::new();
    let mut depth = 0_usize;
    let mut seen_environment = false;
    loop {
        let event = reader
            .read_event()
            .map_err(|error| format!("offset {:#x}: {error}", reader.error_position()))?;
        let (element, opens) = match event {
            Event::Start(element) => (element, true),
            Event::Empty(element) => (element, false),
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                continue;
            }
            Event::DocType(_) => return Err("it has a document type, which is not read".to_owned()),
            Event::Eof => break,
            _ => continue,
        };
        let name = element.local_name();
        if depth == 0 {
            if name.as_ref() != b"Environment" {
                return Err(format!(
                    "its root element is {:?}, expected Environment",
                    String::from_utf8_lossy(name.as_ref())
                ));
            }
            seen_environment = true;
        }
        // Properties of other machines (of a vApp) lie in Entity elements, one level deeper.
        if depth == 2 && name.as_ref() == b"Property" {
            let (mut key, mut value) = (None, None);
            for attribute in element.attributes() {
                let attribute =
                    attribute.map_err(|error| format!("offset {:#x}: {error}", reader.buffer_position()))?;
                let text = attribute
                    .unescape_value()
                    .map_err(|error| format!("offset {:#x}: {error}", reader.buffer_position()))?;
                match attribute.key.local_name().as_ref() {
                    b"key" => key = Some(text.into_owned()),
                    b"value" => value = Some(text.into_owned()),
                    _ => {}
                }
            }
            let (Some(key), Some(value)) = (key, value) else {
                return Err(format!(
                    "offset {:#x}: a property without key or value",
                    reader.buffer_position()
                ));
            };
            if properties.contains_key(&key) {
                return Err(format!("property {key:?} is given twice"));
            }
            properties.insert(key, value);
        }
        if opens {
            depth += 1;
        }
    }
    if depth != 0 {
        return Err("it ends in the middle".to_owned());
    }
    if seen_environment {
        Ok(properties)
    } else {
        Err("it holds no element".to_owned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    fn document(properties: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment xmlns=\"http://schemas.dmtf.org/ovf/environment/1\" \
             xmlns:oe=\"http://schemas.dmtf.org/ovf/environment/1\" xmlns:ve=\"http://www.vmware.com/schema/ovfenv\" \
             oe:id=\"\" ve:vCenterId=\"vm-12\">\n<PlatformSection><Kind>VMware ESXi</Kind></PlatformSection>\n\
             <PropertySection>{properties}</PropertySection>\n\
             <Entity oe:id=\"other\"><PropertySection><Property oe:key=\"guestinfo.hostname\" oe:value=\"other\"/>\
             </PropertySection></Entity></Environment>\0"
        )
    }

    #[test]
    fn properties_of_this_machine_are_read_and_those_of_others_are_not() {
        let text = document(
            "<Property oe:key=\"guestinfo.hostname\" oe:value=\"mt1\"/>\
             <Property oe:key=\"guestinfo.ssh_key\" oe:value=\"a &lt;b&gt; &amp; &#99;\"></Property>",
        );
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found["guestinfo.hostname"], "mt1");
        assert_eq!(found["guestinfo.ssh_key"], "a <b> & c");
    }

    #[test]
    fn every_fault_is_named() {
        let twice = document(&"<Property oe:key=\"a\" oe:value=\"b\"/>".repeat(2));
        let entity = "<!DOCTYPE x [<!ENTITY a \"b\">]><Environment/>";
        let unknown = document("<Property oe:key=\"a\" oe:value=\"&a;\"/>");
        let large = format!("<Environment>{}</Environment>", " ".repeat(BYTES_MAX));
        for (text, fault) in [
            (twice.as_str(), "property \"a\" is given twice"),
            (entity, "it has a document type"),
            (unknown.as_str(), "offset 0x"),
            (large.as_str(), "the most that is read is 262144"),
            ("", "it holds no element"),
            ("not xml", "it holds no element"),
            ("<html/>", "its root element is \"html\""),
            ("<Environment><PropertySection>", "it ends in the middle"),
            ("<Environment></Other>", "offset 0x"),
            (
                document("<Property oe:key=\"a\"/>").as_str(),
                "without key or value",
            ),
        ] {
            let found = parse(text.as_bytes()).unwrap_err();
            assert!(found.contains(fault), "{fault:?} is not in {found:?}");
        }
        assert!(parse(b"\xff").unwrap_err().contains("no UTF-8"));
    }

    proptest::proptest! {
        #[test]
        fn no_document_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = parse(&bytes);
            let mut spoilt = document("<Property oe:key=\"a\" oe:value=\"b\"/>").into_bytes();
            let length = spoilt.len();
            for (index, byte) in bytes.iter().enumerate() {
                spoilt[(index * 131) % length] = *byte;
            }
            let _ = parse(&spoilt);
        }
    }
}
