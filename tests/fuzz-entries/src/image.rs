// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that the build host is given.

use std::io;

use mt_image::manifest::{self, line, parse_line};
use mt_image::spec;
use mt_image::vmdk::reader::GrainTaker;
use mt_image::vmx::{EnableUuid, VmxFile};

/// What was seen of the grains.
#[derive(Default)]
struct Grains {
    end: u64,
    in_order: bool,
}

impl GrainTaker for Grains {
    fn take(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.in_order &= offset >= self.end;
        self.end = self.end.max(offset + data.len() as u64);
        Ok(())
    }
}

/// A streamOptimized VMDK. No grain lies behind the end of the disk, and in one without faults they come in order.
pub fn vmdk(bytes: &[u8]) {
    let mut grains = Grains {
        end: 0,
        in_order: true,
    };
    if let Ok(report) = mt_image::vmdk::reader::read(bytes, &mut grains) {
        assert_eq!(report.file_size, bytes.len() as u64, "it is read to its end");
        assert!(
            grains.end <= report.capacity,
            "a grain behind the end of the disk"
        );
        assert!(
            grains.in_order || !report.faults.is_empty(),
            "grains out of order are no fault"
        );
    }
}

/// An OVA.
pub fn ova(bytes: &[u8]) {
    if let Ok(report) = mt_image::ova::read::read(bytes) {
        assert!(
            !report.faults.is_empty() || report.ovf.is_some(),
            "an OVA without a descriptor is no good one"
        );
    }
}

/// An OVF descriptor.
pub fn ovf(bytes: &[u8]) {
    let _ = mt_image::ovf::read::parse(bytes);
}

/// A manifest, and its signature: the input is both, parted by the first zero byte.
pub fn manifest(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (manifest, signature) = bytes.split_at(at);
    for entry in manifest::parse(manifest).0 {
        let again = line(entry.algorithm, &entry.name, &entry.digest);
        assert_eq!(parse_line(again.trim_end_matches('\n')).as_ref(), Ok(&entry));
    }
    let signature = signature.get(1..).unwrap_or_default();
    let _ = manifest::verify_signature(signature, "mt.mf", manifest);
}

/// The configuration of a virtual machine. The setting can be made in each that is read, once and for all.
pub fn vmx(bytes: &[u8]) {
    let Ok(file) = VmxFile::parse(bytes.to_vec()) else {
        return;
    };
    let _ = file.enable_uuid().to_string();
    let set = file.with_enable_uuid();
    assert_eq!(set.enable_uuid(), EnableUuid::On);
    assert_eq!(set.with_enable_uuid(), set);
}

/// What an image is made of.
pub fn spec(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match spec::parse(text) {
        Ok(spec) => {
            assert!(spec::recheck_hardware(&spec).is_ok() && spec::check_version(&spec.version).is_ok());
        }
        Err(faults) => {
            let lines = text.lines().count().max(1);
            assert!(!faults.is_empty());
            assert!(
                faults
                    .iter()
                    .all(|fault| fault.line.is_none_or(|line| (1..=lines + 1).contains(&line)))
            );
        }
    }
}
