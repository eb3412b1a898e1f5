// SPDX-License-Identifier: MIT OR Apache-2.0
//! XML as a small tree: entities beyond XML's own and document types are refused, nothing is fetched, and depth is bounded.

use quick_xml::NsReader;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;

const DEPTH_MAX: usize = 64;

/// An element with all that is in it.
#[derive(Debug, Default)]
pub struct Element {
    /// Namespace.
    pub namespace: String,
    /// Name without prefix.
    pub name: String,
    /// Attributes, without prefixes.
    pub attributes: Vec<(String, String)>,
    /// Text directly in it.
    pub text: String,
    /// Elements directly in it, in their order.
    pub children: Vec<Element>,
}

impl Element {
    /// The first element of a name directly in it.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All elements of a name directly in it.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Text of the first element of a name directly in it, empty where there is none.
    pub fn child_text(&self, name: &str) -> String {
        self.child(name)
            .map(|child| child.text.trim().to_owned())
            .unwrap_or_default()
    }
}

/// Reads a document.
///
/// # Errors
/// Offset and text of what is wrong.
pub fn tree(bytes: &[u8]) -> Result<Element, (u64, String)> {
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
