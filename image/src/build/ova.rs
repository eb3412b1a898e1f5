// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a raw disk to an OVA.
//!
//! Steps, and what a crash leaves behind:
//! 1. the disk is compressed into a file without a name beside the OVA: nothing;
//! 2. it is digested; descriptor, manifest and signature are made in memory: nothing;
//! 3. the tar is written to a second file without a name: nothing;
//! 4. that file gets its name ([`crate::publish`]): the whole OVA.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::manifest::{Algorithm, Digester, Digests, Signer, line};
use crate::ova::{Part, write};
use crate::ovf::{OvfDisk, render};
use crate::publish::{Existing, Unpublished, refuse_same};
use crate::spec::{ImageSpec, Manifest};
use crate::vmdk::GRAIN_SIZE_U64;
use crate::vmdk::descriptor::TOOLS_VERSION_UNKNOWN;
use crate::vmdk::writer::{self, WriteOptions};

/// How to build.
#[derive(Debug)]
pub struct OvaOptions {
    /// Digest of the manifest.
    pub manifest: Manifest,
    /// Who signs, if anybody.
    pub signer: Option<Signer>,
    /// Deflate level.
    pub level: u32,
    /// Compressing threads.
    pub threads: usize,
    /// What to do with an OVA of that name.
    pub existing: Existing,
}

/// What was built.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct OvaOutcome {
    /// Size of the OVA in bytes.
    pub size: u64,
    /// Size of the virtual disk in bytes.
    pub capacity: u64,
    /// Bytes of zeros of that size behind the raw disk's end.
    pub padding_bytes: u64,
    /// Grains of the disk that hold data.
    pub grains: u64,
}

/// Builds the OVA `out` from the raw disk at `disk`.
///
/// # Errors
/// Reading or writing failed, or `out` exists and is to be kept. Nothing is left behind then.
pub fn build(spec: &ImageSpec, disk: &Path, out: &Path, options: &OvaOptions) -> Result<OvaOutcome> {
    let (raw, raw_size) = crate::cli::open_input(disk)?;
    refuse_same(disk, out)?;
    let published = Unpublished::create(out, options.existing)?;
    let base = format!("{}-{}", spec.name, spec.version);
    let [ovf_name, manifest_name, certificate_name, disk_name] =
        ["ovf", "mf", "cert", "vmdk"].map(|extension| match extension {
            "vmdk" => format!("{base}-disk1.vmdk"),
            _ => format!("{base}.{extension}"),
        });

    let vmdk = Unpublished::create(
        &out.with_file_name(format!(".{disk_name}.part")),
        Existing::Replace,
    )?;
    let write_options = WriteOptions {
        level: options.level,
        threads: options.threads,
        extent_name: disk_name.clone(),
        tools_version: TOOLS_VERSION_UNKNOWN,
    };
    let summary = writer::write(&raw, raw_size, vmdk.file(), &write_options, &mut |_| {})
        .map_err(|error| crate::cli::write_error(error, disk, out))?;

    let algorithm = Algorithm::from(options.manifest);
    let described = OvfDisk {
        href: disk_name.clone(),
        file_size: summary.file_size,
        capacity: summary.capacity_sectors * 512,
        populated: summary.grains * GRAIN_SIZE_U64,
    };
    let ovf = render(spec, spec.hardware.firmware, &described).map_err(|error| {
        Error::new(
            Kind::Unexpected,
            format!("cannot render the OVF descriptor: {error}"),
        )
    })?;
    let disk_digests = digests_of(vmdk.file(), summary.file_size)
        .map_err(|error| Error::io("read back the disk of", out, error))?;
    let manifest = line(algorithm, &ovf_name, Digests::of(&ovf).by(algorithm))
        + &line(algorithm, &disk_name, disk_digests.by(algorithm));
    let certificate = options
        .signer
        .as_ref()
        .map(|signer| signer.sign(&manifest_name, manifest.as_bytes()))
        .transpose()?;

    let mut parts = vec![
        Part {
            name: &ovf_name,
            bytes: &ovf,
        },
        Part {
            name: &manifest_name,
            bytes: manifest.as_bytes(),
        },
    ];
    if let Some(certificate) = &certificate {
        parts.push(Part {
            name: &certificate_name,
            bytes: certificate.as_bytes(),
        });
    }
    write(
        published.file(),
        &parts,
        &disk_name,
        vmdk.file(),
        summary.file_size,
        spec.source_date,
    )
    .map_err(|error| Error::io("write", out, error))?;
    let size = published
        .file()
        .metadata()
        .map_err(|error| Error::io("examine", out, error))?
        .len();
    super::image::refuse_large("OVA", size, "ova_mib_max", spec.sizes.ova_mib_max)?;
    published.publish()?;
    Ok(OvaOutcome {
        size,
        capacity: summary.capacity_sectors * 512,
        padding_bytes: summary.padding_bytes,
        grains: summary.grains,
    })
}

fn digests_of(file: &File, size: u64) -> io::Result<Digests> {
    let mut digester = Digester::default();
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = 0;
    while at < size {
        let count = usize::try_from((size - at).min(1 << 20)).expect("at most 1 MiB");
        file.read_exact_at(&mut buffer[..count], at)?;
        digester.update(&buffer[..count]);
        at += count as u64;
    }
    Ok(digester.finish())
}
