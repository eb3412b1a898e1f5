//! The store of a machine in its folder, with its catalogue beside it.

use std::path::Path;

use mt_retention::files::FileStorage;
use mt_retention::{Checked, OpenOptions, Recovered, Store, StoreError};

use super::catalogue::Catalogue;
use super::machine::FileStore;

/// A store that was opened, and its catalogue where there can be one.
pub struct Opened {
    /// The store.
    pub store: FileStore,
    /// Its catalogue; without one the next opening takes longer.
    pub catalogue: Option<Catalogue>,
    /// What opening found and did.
    pub recovered: Recovered,
}

/// Opens a store in storage of this folder. Its catalogue is taken, put right or begun anew, and points that depend on
/// what was found damaged before are marked.
///
/// # Errors
/// As `Store::open`. Nothing about the catalogue is an error.
pub fn open(
    name: &str,
    folder: &Path,
    storage: FileStorage,
    options: OpenOptions,
) -> Result<Opened, StoreError> {
    let mut catalogue = match Catalogue::open(folder) {
        Ok((catalogue, None)) => Some(catalogue),
        Ok((catalogue, Some(why))) => {
            tracing::warn!(
                machine = name,
                "the catalogue of the retention store is made anew: {why}"
            );
            Some(catalogue)
        }
        Err(error) => {
            tracing::warn!(machine = name, "the retention store has no catalogue: {error}");
            None
        }
    };
    let opened = match &catalogue {
        Some(catalogue) => Store::open_with(storage, options, catalogue),
        None => Store::open(storage, options),
    };
    let (mut store, recovered) = opened?;
    if let Some(known) = &mut catalogue
        && let Err(error) = put_right(name, known, &mut store, &recovered)?
    {
        tracing::warn!(
            machine = name,
            "the catalogue of the retention store cannot be written: {error}"
        );
        catalogue = None;
    }
    Ok(Opened {
        store,
        catalogue,
        recovered,
    })
}

/// Brings catalogue and store together. The error of the inside is the catalogue's.
fn put_right(
    name: &str,
    catalogue: &mut Catalogue,
    store: &mut FileStore,
    recovered: &Recovered,
) -> Result<rusqlite::Result<()>, StoreError> {
    let (damaged, unreadable) = catalogue.damaged();
    if unreadable {
        tracing::warn!(
            machine = name,
            "notes of damage in the catalogue cannot be read; \"mt-agent retention check {name}\" finds what they said"
        );
    }
    for segment in damaged {
        let checked = store.check_segment(segment)?;
        if let Err(error) = catalogue.note(segment, &checked.findings) {
            return Ok(Err(error));
        }
    }
    if let Some(first) = recovered.catalogue.first() {
        tracing::warn!(
            machine = name,
            "the catalogue of the retention store did not count for {} segments, whose footers were read: {first}",
            recovered.catalogue.len()
        );
        if let Err(error) = catalogue.forget_summaries() {
            return Ok(Err(error));
        }
    }
    Ok(catalogue.follow(store))
}

/// Reads segments from end to end, marks the points that depend on damage in them, and notes it in the catalogue.
///
/// # Errors
/// When the storage fails.
pub fn check(
    name: &str,
    store: &mut FileStore,
    catalogue: Option<&Catalogue>,
    segment: u64,
) -> Result<Checked, StoreError> {
    let checked = store.check_segment(segment)?;
    if let Some(catalogue) = catalogue
        && let Err(error) = catalogue.note(segment, &checked.findings)
    {
        tracing::warn!(machine = name, "damage cannot be noted in the catalogue: {error}");
    }
    Ok(checked)
}
