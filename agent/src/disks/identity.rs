//! Holds the witnesses of a disk's SCSI ID against each other.
//!
//! The disk's own answer to INQUIRY is what counts. The kernel's and udev's copies of it are older: they
//! were taken when the disk appeared. Where they name another disk, something was exchanged behind the same
//! name, and the disk is in doubt until it has been attached anew.

use mt_blockdev::ioctl::InquiryError;
use mt_blockdev::scsi::{self, Designator, DesignatorValue, ScsiId};

use super::facts::Identity;

/// What each witness says of one SCSI disk.
#[derive(Debug, Clone, Default)]
pub struct Witnesses {
    /// Page 0x83 by INQUIRY; the error's text when it could not be asked.
    pub inquiry: Option<Result<Vec<u8>, InquiryFailure>>,
    /// Page 0x83 as the kernel keeps it.
    pub sysfs_vpd83: Option<Vec<u8>>,
    /// The kernel's choice of it.
    pub sysfs_wwid: Option<String>,
    /// udev's `ID_WWN_WITH_EXTENSION`.
    pub udev_wwn_with_extension: Option<String>,
    /// udev's `ID_WWN`: the first 16 digits only.
    pub udev_wwn: Option<String>,
}

/// Why page 0x83 was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InquiryFailure {
    /// The disk answered that it has no such page.
    NoPage(String),
    /// The disk could not be asked.
    NotAsked(String),
}

impl From<InquiryError> for InquiryFailure {
    fn from(err: InquiryError) -> Self {
        match err {
            // The device itself said no: ILLEGAL REQUEST (sense key 5).
            InquiryError::Refused { sense_key: 5, .. } => {
                Self::NoPage("the disk has no VPD page 0x83".to_owned())
            }
            InquiryError::NotScsi => Self::NoPage("the device takes no SCSI commands".to_owned()),
            InquiryError::Refused { .. } | InquiryError::Transport { .. } | InquiryError::Os(_) => {
                Self::NotAsked(format!("INQUIRY failed: {err}"))
            }
        }
    }
}

/// Decides who a disk is.
#[must_use]
pub fn decide(witnesses: &Witnesses) -> Identity {
    let cached = cached_id(witnesses);
    let page = match &witnesses.inquiry {
        Some(Ok(page)) => page,
        Some(Err(InquiryFailure::NoPage(why))) => return without_id(witnesses, why.clone()),
        Some(Err(InquiryFailure::NotAsked(why))) => {
            return Identity::Unconfirmed {
                scsi_id: cached,
                why: why.clone(),
            };
        }
        None => {
            return Identity::Unconfirmed {
                scsi_id: cached,
                why: "it was not asked".to_owned(),
            };
        }
    };
    let designators = match scsi::parse_vpd83(page) {
        Ok(designators) => designators,
        Err(err) => return without_id(witnesses, format!("VPD page 0x83 is damaged: {err}")),
    };
    let Some(scsi_id) = scsi::identity(&designators) else {
        return without_id(witnesses, why_no_identity(&designators));
    };
    let names: Vec<ScsiId> = designators.iter().filter_map(Designator::unit_id).collect();
    let others = disagreeing(witnesses, &names);
    if others.is_empty() {
        return Identity::Known { scsi_id };
    }
    let mut said = vec![format!("INQUIRY {scsi_id}")];
    said.extend(others);
    Identity::Conflict {
        scsi_id: Some(scsi_id),
        witnesses: said,
    }
}

/// A disk that gives no ID of its own: missing, unless some copy has one, which then is in conflict with it.
fn without_id(witnesses: &Witnesses, why: String) -> Identity {
    let others = disagreeing(witnesses, &[]);
    if others.is_empty() {
        return Identity::Missing { why };
    }
    let mut said = vec![format!("INQUIRY none ({why})")];
    said.extend(others);
    // The cached ID stays visible, so that a pair of that ID finds this disk and is refused by it.
    Identity::Conflict {
        scsi_id: cached_id(witnesses),
        witnesses: said,
    }
}

fn why_no_identity(designators: &[Designator]) -> String {
    if designators.is_empty() {
        return "VPD page 0x83 is empty".to_owned();
    }
    for designator in designators {
        if let DesignatorValue::Invalid(err) = &designator.value {
            return format!("VPD page 0x83 holds no name: {err}");
        }
    }
    "VPD page 0x83 holds no NAA or EUI-64 name of the disk".to_owned()
}

fn cached_id(witnesses: &Witnesses) -> Option<ScsiId> {
    witnesses
        .sysfs_vpd83
        .as_deref()
        .and_then(|page| scsi::parse_vpd83(page).ok())
        .and_then(|designators| scsi::identity(&designators))
        .or_else(|| {
            witnesses
                .sysfs_wwid
                .as_deref()
                .and_then(|wwid| ScsiId::parse(wwid).ok())
        })
}

/// The copies that name something the disk does not call itself. Copies that hold no registered name (a
/// `t10.` text, a name string) say nothing either way.
fn disagreeing(witnesses: &Witnesses, names: &[ScsiId]) -> Vec<String> {
    let mut said = Vec::new();
    let mut compare = |witness: &str, id: Option<ScsiId>| {
        if let Some(id) = id
            && !names.contains(&id)
        {
            said.push(format!("{witness} {id}"));
        }
    };
    let page = witnesses
        .sysfs_vpd83
        .as_deref()
        .and_then(|page| scsi::parse_vpd83(page).ok());
    compare(
        "sysfs vpd_pg83",
        page.and_then(|designators| scsi::identity(&designators)),
    );
    compare(
        "sysfs wwid",
        witnesses
            .sysfs_wwid
            .as_deref()
            .and_then(|wwid| ScsiId::parse(wwid).ok()),
    );
    if let Some(wwn) = &witnesses.udev_wwn_with_extension {
        // udev does not say which kind of name it is, and reads as NAA what is EUI-64.
        if let Ok(id) = ScsiId::parse(wwn)
            && !names.iter().any(|name| name.as_bytes() == id.as_bytes())
        {
            said.push(format!("udev {wwn}"));
        }
    } else if let Some(wwn) = &witnesses.udev_wwn {
        let digits = wwn.trim().trim_start_matches("0x").to_ascii_lowercase();
        if !digits.is_empty()
            && !names
                .iter()
                .any(|name| name.to_string()[4..].starts_with(&digits))
        {
            said.push(format!("udev {wwn}"));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "naa.6000c29a71e02b4c9d118e55037faa01";
    const OTHER: &str = "naa.6000c29a71e02b4c9d118e55037faa02";

    fn page(ids: &[&str]) -> Vec<u8> {
        let mut body = Vec::new();
        for id in ids {
            let id = ScsiId::parse(id).unwrap();
            body.extend_from_slice(&[1, 3, 0, u8::try_from(id.as_bytes().len()).unwrap()]);
            body.extend_from_slice(id.as_bytes());
        }
        let mut page = vec![0, 0x83, 0, u8::try_from(body.len()).unwrap()];
        page.extend(body);
        page
    }

    fn agreeing() -> Witnesses {
        Witnesses {
            inquiry: Some(Ok(page(&[ID]))),
            sysfs_vpd83: Some(page(&[ID])),
            sysfs_wwid: Some(ID.to_owned()),
            udev_wwn_with_extension: Some("0x6000c29a71e02b4c9d118e55037faa01".to_owned()),
            udev_wwn: Some("0x6000c29a71e02b4c".to_owned()),
        }
    }

    #[test]
    fn witnesses_that_agree_or_are_silent_make_an_id() {
        let known = Identity::Known {
            scsi_id: ScsiId::parse(ID).unwrap(),
        };
        assert_eq!(decide(&agreeing()), known);
        let alone = Witnesses {
            inquiry: Some(Ok(page(&[ID]))),
            ..Witnesses::default()
        };
        assert_eq!(decide(&alone), known, "no sysfs attributes and no udevd");
        // The kernel of another age may have picked another of the disk's own names.
        let second = "naa.5000c29a71e02b4c";
        let several = Witnesses {
            inquiry: Some(Ok(page(&[second, ID]))),
            sysfs_wwid: Some(second.to_owned()),
            ..Witnesses::default()
        };
        assert_eq!(decide(&several), known);
        let text = Witnesses {
            sysfs_wwid: Some("t10.VMware  Virtual disk".to_owned()),
            ..alone.clone()
        };
        assert_eq!(decide(&text), known, "a text is no name");
        let short = Witnesses {
            udev_wwn_with_extension: None,
            ..agreeing()
        };
        assert_eq!(decide(&short), known, "ID_WWN has the first half only");
    }

    #[test]
    fn every_single_witness_can_put_a_disk_in_doubt() {
        let cases: [(&str, Witnesses); 4] = [
            (
                "sysfs vpd_pg83",
                Witnesses {
                    sysfs_vpd83: Some(page(&[OTHER])),
                    ..agreeing()
                },
            ),
            (
                "sysfs wwid",
                Witnesses {
                    sysfs_wwid: Some(OTHER.to_owned()),
                    ..agreeing()
                },
            ),
            (
                "udev 0x",
                Witnesses {
                    udev_wwn_with_extension: Some(OTHER.replace("naa.", "0x")),
                    ..agreeing()
                },
            ),
            (
                "udev 0x5",
                Witnesses {
                    udev_wwn_with_extension: None,
                    udev_wwn: Some("0x5000c29a71e02b4c".to_owned()),
                    ..agreeing()
                },
            ),
        ];
        for (witness, witnesses) in cases {
            let Identity::Conflict {
                scsi_id,
                witnesses: said,
            } = decide(&witnesses)
            else {
                panic!("{witness} must be a conflict, got {:?}", decide(&witnesses));
            };
            assert_eq!(
                scsi_id,
                Some(ScsiId::parse(ID).unwrap()),
                "the disk stays findable by its own answer"
            );
            assert_eq!(said.len(), 2, "{said:?}");
            assert!(
                said[0].starts_with("INQUIRY naa.") && said[1].starts_with(witness),
                "{said:?}"
            );
        }
    }

    #[test]
    fn a_disk_without_a_name_says_why() {
        let missing = |answer: Result<Vec<u8>, InquiryFailure>| {
            let witnesses = Witnesses {
                inquiry: Some(answer),
                ..Witnesses::default()
            };
            match decide(&witnesses) {
                Identity::Missing { why } => why,
                other => panic!("expected missing, got {other:?}"),
            }
        };
        assert_eq!(missing(Ok(page(&[]))), "VPD page 0x83 is empty");
        assert_eq!(
            missing(Ok(vec![0, 0x83, 0, 8, 2, 1, 0, 4, b'a', b'b', b'c', b'd'])),
            "VPD page 0x83 holds no NAA or EUI-64 name of the disk"
        );
        assert!(missing(Ok(vec![0, 0x83, 0, 9])).starts_with("VPD page 0x83 is damaged"));
        assert!(missing(Ok([&[0, 0x83, 0, 12, 1, 2, 0, 8][..], &[0; 8]].concat())).contains("all zeros"));
        assert_eq!(missing(Err(InquiryFailure::NoPage("no page".into()))), "no page");
    }

    #[test]
    fn a_copy_of_a_name_the_disk_does_not_give_is_a_conflict() {
        let witnesses = Witnesses {
            inquiry: Some(Ok(page(&[]))),
            ..agreeing()
        };
        let Identity::Conflict { scsi_id, .. } = decide(&witnesses) else {
            panic!("{:?}", decide(&witnesses))
        };
        assert_eq!(
            scsi_id,
            Some(ScsiId::parse(ID).unwrap()),
            "a pair of the old name must find and refuse it"
        );
    }

    #[test]
    fn a_disk_that_could_not_be_asked_is_unconfirmed_and_not_missing() {
        let failure = InquiryFailure::NotAsked("Permission denied".to_owned());
        let witnesses = Witnesses {
            inquiry: Some(Err(failure)),
            ..agreeing()
        };
        assert!(matches!(
            decide(&witnesses),
            Identity::Unconfirmed { scsi_id: Some(_), .. }
        ));
        assert!(matches!(
            decide(&Witnesses::default()),
            Identity::Unconfirmed { scsi_id: None, .. }
        ));
        let refused = InquiryError::Refused {
            status: 2,
            sense_key: 5,
            code: 0x24,
            qualifier: 0,
        };
        assert!(matches!(InquiryFailure::from(refused), InquiryFailure::NoPage(_)));
        // A disk that is not ready (sense key 2) may well have a name.
        let not_ready = InquiryError::Refused {
            status: 2,
            sense_key: 2,
            code: 4,
            qualifier: 1,
        };
        assert!(matches!(
            InquiryFailure::from(not_ready),
            InquiryFailure::NotAsked(_)
        ));
    }
}
