//! What the objects of a store say, before anything is changed: whose it is, and which segment gives the state.

use std::collections::BTreeMap;

use crate::codec::{Malformed, u64_of};
use crate::error::StoreError;
use crate::log::damaged;
use crate::scan::read_header;
use crate::segment::SegmentHeader;
use crate::storage::{ObjectName, Storage};
use crate::superblock::{SUPERBLOCK_SIZE, Superblock, known_version, newer_version};

/// What the objects of a store say, before anything is changed.
pub(super) struct Survey {
    pub(super) superblock: Superblock,
    /// What is wrong with the superblocks, when something is.
    pub(super) to_repair: Option<String>,
    /// Bytes of the object SPARE, when it is there.
    pub(super) spare: Option<u64>,
    /// Lengths of all segments.
    pub(super) lengths: BTreeMap<u64, u64>,
    /// The newest segment whose header can be read.
    pub(super) base: Option<(u64, SegmentHeader)>,
    /// Those after it, and what is wrong with their headers.
    pub(super) headless: BTreeMap<u64, String>,
}

/// Reads a superblock; the error of the inside says that the bytes are not one.
pub(crate) fn read_superblock<S: Storage>(
    storage: &S,
    slot: u8,
    len: u64,
) -> Result<Result<Superblock, (Malformed, Option<u32>)>, StoreError> {
    if len != u64_of(SUPERBLOCK_SIZE) {
        return Ok(Err(("a superblock is cut", None)));
    }
    let mut bytes = vec![0; SUPERBLOCK_SIZE];
    storage.read(ObjectName::Super(slot), 0, &mut bytes)?;
    Ok(Superblock::decode(&bytes).map_err(|what| (what, newer_version(&bytes))))
}

/// Finds the superblock that counts, and says what is wrong with either.
fn superblocks<S: Storage>(
    storage: &S,
    objects: &[(ObjectName, u64)],
) -> Result<(Superblock, Option<String>), StoreError> {
    let mut found: Vec<Superblock> = Vec::new();
    let (mut why, mut newer) = (None, None);
    for slot in [0, 1] {
        let object = ObjectName::Super(slot);
        let Some((_, len)) = objects.iter().find(|(name, _)| *name == object) else {
            why = why.or_else(|| Some(format!("{object} is missing")));
            continue;
        };
        match read_superblock(storage, slot, *len)? {
            Ok(superblock) => found.push(superblock),
            Err((what, version)) => {
                newer = newer.or(version);
                why = Some(format!("{object}: {what}"));
            }
        }
    }
    let differ = found.windows(2).any(|two| two[0].generation != two[1].generation);
    found.sort_by_key(|superblock| superblock.sequence);
    match (found.pop(), why) {
        (Some(best), why) => Ok((
            best,
            why.or_else(|| differ.then(|| "the superblocks differ in their generation".to_owned())),
        )),
        (None, Some(_)) if newer.is_some() => Err(StoreError::Newer {
            found: newer.unwrap_or_default(),
            known: known_version(),
        }),
        (None, Some(what))
            if objects
                .iter()
                .any(|(name, _)| matches!(name, ObjectName::Super(_))) =>
        {
            Err(damaged(
                ObjectName::Super(0),
                0,
                format!("neither superblock can be read: {what}"),
            ))
        }
        (None, _) => Err(StoreError::NotAStore {
            found: format!("{} objects and no superblock", objects.len()),
        }),
    }
}

/// Writes both superblocks anew from the newest segment when neither can be read. Says whether it did. The generation
/// is that of the time when the segment was begun: whoever knows a newer one raises it.
///
/// # Errors
/// When no segment's header can be read either, a newer program wrote the store, or the storage fails.
pub fn restore_superblocks<S: Storage>(storage: &mut S) -> Result<bool, StoreError> {
    let mut objects = storage.list()?;
    let lost = match superblocks(storage, &objects) {
        Ok(_) => return Ok(false),
        Err(err @ (StoreError::Damaged { .. } | StoreError::NotAStore { .. })) => err,
        Err(err) => return Err(err),
    };
    objects.sort_unstable();
    for (object, len) in objects.iter().rev() {
        let ObjectName::Segment(seq) = object else {
            continue;
        };
        let Ok(header) = read_header(storage, *seq, *len)? else {
            continue;
        };
        if header.seq != *seq {
            continue;
        }
        for slot in [0, 1] {
            let object = ObjectName::Super(slot);
            if objects.iter().any(|(name, _)| *name == object) {
                storage.remove(object)?;
            }
            storage.create(object, u64_of(SUPERBLOCK_SIZE))?;
            let bytes = Superblock {
                store: header.store,
                sequence: u64::from(slot) + 1,
                generation: header.state.generation,
                segment_size: header.size,
                applied: header.state.applied,
                committed: header.state.committed,
                disks: header.state.disks.clone(),
            }
            .encode();
            storage.write(object, 0, &[&bytes])?;
            storage.sync(object)?;
        }
        storage.sync_dir()?;
        return Ok(true);
    }
    Err(lost)
}

pub(super) fn survey<S: Storage>(storage: &S) -> Result<Survey, StoreError> {
    let objects = storage.list()?;
    let (superblock, to_repair) = superblocks(storage, &objects)?;
    let lengths: BTreeMap<u64, u64> = objects
        .iter()
        .filter_map(|(object, len)| match object {
            ObjectName::Segment(seq) => Some((*seq, *len)),
            _ => None,
        })
        .collect();
    let mut survey = Survey {
        superblock,
        to_repair,
        spare: objects
            .iter()
            .find(|(object, _)| *object == ObjectName::Spare)
            .map(|(_, len)| *len),
        lengths,
        base: None,
        headless: BTreeMap::new(),
    };
    for (seq, len) in survey.lengths.iter().rev() {
        let header = read_header(storage, *seq, *len)?.and_then(|header| {
            if header.store != survey.superblock.store {
                Err("it belongs to another store")
            } else if header.seq != *seq {
                Err("it belongs to another segment")
            } else {
                Ok(header)
            }
        });
        match header {
            Ok(header) => {
                survey.base = Some((*seq, header));
                break;
            }
            Err(what) => {
                survey.headless.insert(*seq, what.to_owned());
            }
        }
    }
    Ok(survey)
}
