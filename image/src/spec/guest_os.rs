// SPDX-License-Identifier: MIT OR Apache-2.0
//! Identifiers of guest systems that vSphere knows (`VirtualMachineGuestOsIdentifier` of its API 8.0).
//!
//! An identifier it does not know is not refused by an import: the machine becomes "Other", with another choice of virtual
//! hardware than was meant.

/// All of vSphere 8.0, sorted.
const KNOWN: &str = "\
    almalinux_64Guest amazonlinux2_64Guest amazonlinux3_64Guest asianux3Guest asianux3_64Guest asianux4Guest \
    asianux4_64Guest asianux5_64Guest asianux7_64Guest asianux8_64Guest asianux9_64Guest centos64Guest \
    centos6Guest centos6_64Guest centos7Guest centos7_64Guest centos8_64Guest centos9_64Guest centosGuest \
    coreos64Guest crxPod1Guest darwin10Guest darwin10_64Guest darwin11Guest darwin11_64Guest darwin12_64Guest \
    darwin13_64Guest darwin14_64Guest darwin15_64Guest darwin16_64Guest darwin17_64Guest darwin18_64Guest \
    darwin19_64Guest darwin20_64Guest darwin21_64Guest darwin22_64Guest darwin23_64Guest darwin64Guest darwinGuest \
    debian10Guest debian10_64Guest debian11Guest debian11_64Guest debian12Guest debian12_64Guest debian4Guest \
    debian4_64Guest debian5Guest debian5_64Guest debian6Guest debian6_64Guest debian7Guest debian7_64Guest \
    debian8Guest debian8_64Guest debian9Guest debian9_64Guest dosGuest eComStation2Guest eComStationGuest \
    fedora64Guest fedoraGuest freebsd11Guest freebsd11_64Guest freebsd12Guest freebsd12_64Guest freebsd13Guest \
    freebsd13_64Guest freebsd14Guest freebsd14_64Guest freebsd64Guest freebsdGuest genericLinuxGuest mandrakeGuest \
    mandriva64Guest mandrivaGuest netware4Guest netware5Guest netware6Guest nld9Guest oesGuest openServer5Guest \
    openServer6Guest opensuse64Guest opensuseGuest oracleLinux64Guest oracleLinux6Guest oracleLinux6_64Guest \
    oracleLinux7Guest oracleLinux7_64Guest oracleLinux8_64Guest oracleLinux9_64Guest oracleLinuxGuest os2Guest \
    other24xLinux64Guest other24xLinuxGuest other26xLinux64Guest other26xLinuxGuest other3xLinux64Guest \
    other3xLinuxGuest other4xLinux64Guest other4xLinuxGuest other5xLinux64Guest other5xLinuxGuest \
    other6xLinux64Guest other6xLinuxGuest otherGuest otherGuest64 otherLinux64Guest otherLinuxGuest redhatGuest \
    rhel2Guest rhel3Guest rhel3_64Guest rhel4Guest rhel4_64Guest rhel5Guest rhel5_64Guest rhel6Guest rhel6_64Guest \
    rhel7Guest rhel7_64Guest rhel8_64Guest rhel9_64Guest rockylinux_64Guest sjdsGuest sles10Guest sles10_64Guest \
    sles11Guest sles11_64Guest sles12Guest sles12_64Guest sles15_64Guest sles16_64Guest sles64Guest slesGuest \
    solaris10Guest solaris10_64Guest solaris11_64Guest solaris6Guest solaris7Guest solaris8Guest solaris9Guest \
    suse64Guest suseGuest turboLinux64Guest turboLinuxGuest ubuntu64Guest ubuntuGuest unixWare7Guest \
    vmkernel5Guest vmkernel65Guest vmkernel6Guest vmkernel7Guest vmkernel8Guest vmkernelGuest vmwarePhoton64Guest \
    win2000AdvServGuest win2000ProGuest win2000ServGuest win31Guest win95Guest win98Guest winLonghorn64Guest \
    winLonghornGuest winMeGuest winNTGuest winNetBusinessGuest winNetDatacenter64Guest winNetDatacenterGuest \
    winNetEnterprise64Guest winNetEnterpriseGuest winNetStandard64Guest winNetStandardGuest winNetWebGuest \
    winVista64Guest winVistaGuest winXPHomeGuest winXPPro64Guest winXPProGuest windows11_64Guest windows12_64Guest \
    windows2019srvNext_64Guest windows2019srv_64Guest windows2022srvNext_64Guest windows7Guest \
    windows7Server64Guest windows7_64Guest windows8Guest windows8Server64Guest windows8_64Guest windows9Guest \
    windows9Server64Guest windows9_64Guest windowsHyperVGuest";

fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.split_ascii_whitespace()
}

/// Whether vSphere knows an identifier, or one that differs in the number of a release only: newer ones appear with every
/// vSphere.
#[must_use]
pub fn is_known(identifier: &str) -> bool {
    known().any(|known| known == identifier)
        || family(identifier).is_some_and(|own| known().any(|known| family(known) == Some(own)))
}

/// What stands before and behind the number of the release; `None` where there is none. The 64 of a kind of processor is no
/// release.
fn family(identifier: &str) -> Option<(&str, &str)> {
    let begin = identifier.find(|c: char| c.is_ascii_digit())?;
    let rest = &identifier[begin..];
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    (&rest[..end] != "64" && end <= 4).then_some((&identifier[..begin], &rest[end..]))
}

/// The known identifier that is most like another one, where it is alike at all.
#[must_use]
pub fn nearest(identifier: &str) -> Option<&'static str> {
    known()
        .map(|known| (strsim::damerau_levenshtein(known, identifier), known))
        .filter(|(distance, known)| distance * 4 <= known.len())
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole_and_sorted() {
        let list: Vec<&str> = known().collect();
        assert!(list.is_sorted());
        assert_eq!(list.len(), 195);
    }

    #[test]
    fn newer_releases_of_known_families_are_taken_and_others_not() {
        for good in [
            "other3xLinux64Guest",
            "debian12_64Guest",
            "debian14_64Guest",
            "other7xLinux64Guest",
            "otherGuest64",
        ] {
            assert!(is_known(good), "{good}");
        }
        for bad in [
            "",
            "x",
            "Debian12_64Guest",
            "debian12_65Guest",
            "other3xLinux32Guest",
            "ubuntu65Guest",
            "otherGuest65",
            "debian12345_64Guest",
            "windows",
            "\u{661}Guest",
        ] {
            assert!(!is_known(bad), "{bad}");
        }
        assert_eq!(nearest("other3xlinux64guest"), Some("other3xLinux64Guest"));
        assert_eq!(nearest("penguin"), None);
    }
}
