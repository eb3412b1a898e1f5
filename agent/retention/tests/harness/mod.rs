//! A machine with two disks and a store, and a simple model that says what each point has to look like.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub mod enumerate;

use std::collections::BTreeMap;

use mt_retention::testing::{Power, Rng, SimDisk, SimStorage};
use mt_retention::{
    BLOCK_SIZE, Consistency, CreateOptions, Disk, DiskIndex, EpochNumber, Offered, OpenOptions, PointSpec,
    Store, StoreAccess, StoreError, TargetDisk, apply_step_of, digest,
};

/// Blocks of each disk; the last is cut to 512 bytes.
pub const BLOCKS: usize = 10;
pub const DISKS: usize = 2;
pub const SIZE: usize = (BLOCKS - 1) * BLOCK_SIZE + 512;
pub const SEGMENT: u64 = 64 << 10;
const BUDGET: u64 = 5 * BLOCK_SIZE as u64;
/// What is kept in memory until it is on the disks: some content is, and some has to be read back.
const MEMORY: usize = 4 * BLOCK_SIZE;

/// What a block holds, as a number: 0 is zeros.
pub type Tag = u64;
/// Tags of all blocks of all disks.
pub type Image = Vec<Vec<Tag>>;

pub fn block_len(block: usize) -> usize {
    if block + 1 == BLOCKS { 512 } else { BLOCK_SIZE }
}

pub fn content(tag: Tag, len: usize) -> Vec<u8> {
    if tag == 0 {
        return vec![0; len];
    }
    tag.to_le_bytes().iter().copied().cycle().take(len).collect()
}

pub fn bytes_of(image: &[Tag]) -> Vec<u8> {
    image
        .iter()
        .enumerate()
        .flat_map(|(block, tag)| content(*tag, block_len(block)))
        .collect()
}

pub fn spec(time: i64) -> PointSpec {
    PointSpec {
        consistency: Consistency::Crash,
        source_time_ms: time,
        received_time_ms: time,
        name: format!("point {time}"),
        tags: vec!["test".to_owned()],
    }
}

pub fn table() -> Vec<Disk> {
    (0..DISKS)
        .map(|at| Disk {
            id: format!("naa.{at}"),
            size: SIZE as u64,
        })
        .collect()
}

pub fn disk_index(disk: usize) -> DiskIndex {
    DiskIndex(u16::try_from(disk).unwrap())
}

/// What must be true whatever happens.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Content at the end of every epoch that is, or may be, complete.
    pub states: BTreeMap<EpochNumber, Image>,
    /// Acknowledged.
    pub acked: EpochNumber,
    /// Points that are on offer for certain.
    pub offered: Vec<EpochNumber>,
    /// Points that may be on offer or not: a commit or a drop that was cut.
    pub perhaps: Vec<EpochNumber>,
    /// Generation that was raised for certain.
    pub generation: u64,
    /// The open epoch's content.
    pub open: Option<Image>,
}

pub struct World {
    pub power: Power,
    pub storage: SimStorage,
    pub disks: Vec<SimDisk>,
    pub store: Store<SimStorage>,
    pub model: Model,
    pub time: i64,
    next_tag: Tag,
}

/// Everybody else who has a store that is being applied.
struct Others<'a> {
    world: &'a mut World,
    rng: &'a mut Rng,
    failed: Option<StoreError>,
}

impl Others<'_> {
    fn act(&mut self) -> Result<(), StoreError> {
        let world = &mut *self.world;
        let block = usize::try_from(self.rng.below(BLOCKS as u64 - 1)).unwrap();
        let oldest = world.model.offered.first().copied();
        match (self.rng.below(7), oldest) {
            (0 | 1, _) => world.write(block % DISKS, block, 2),
            (2, _) => world.commit(Offered::AsPoint).map(|_| ()),
            (3, Some(oldest)) if world.model.offered.len() > 2 => world.drop_point(oldest),
            (4, _) => world.store.reclaim(100).map(|_| ()),
            (5, _) => world.check_points().map_err(|what| StoreError::PointDamaged {
                epoch: world.model.acked,
                why: what,
            }),
            _ => Ok(()),
        }
    }
}

impl StoreAccess<SimStorage> for Others<'_> {
    fn with<T>(&mut self, work: impl FnOnce(&mut Store<SimStorage>) -> T) -> Option<T> {
        let answer = work(&mut self.world.store);
        if let Err(error) = self.act() {
            self.failed.get_or_insert(error);
        }
        Some(answer)
    }
}

impl World {
    /// Disks full of something, and a new store; `initial` offers them as the first point.
    pub fn new(initial: bool) -> Self {
        Self::with_capacity(initial, 0)
    }

    /// The same in a store that may take `capacity` bytes.
    pub fn with_capacity(initial: bool, capacity: u64) -> Self {
        let power = Power::new();
        let storage = SimStorage::with_power(&power);
        let image: Image = (0..DISKS)
            .map(|disk| {
                (0..BLOCKS)
                    .map(|block| {
                        if block == 3 {
                            0
                        } else {
                            (1 + disk as u64) << 32 | block as u64
                        }
                    })
                    .collect()
            })
            .collect();
        let disks: Vec<SimDisk> = image
            .iter()
            .map(|tags| {
                let disk = SimDisk::with_power(SIZE, &power);
                disk.fill(&bytes_of(tags));
                disk
            })
            .collect();
        let mut store = Store::create(
            storage.clone(),
            CreateOptions {
                uuid: [7; 16],
                generation: 1,
                disks: table(),
                segment_size: SEGMENT,
                capacity,
                initial_point: initial.then(|| spec(0)),
            },
        )
        .unwrap();
        let zero = EpochNumber(0);
        store.set_memory(MEMORY);
        Self {
            power,
            storage,
            disks,
            store,
            model: Model {
                states: BTreeMap::from([(zero, image)]),
                offered: if initial { vec![zero] } else { Vec::new() },
                ..Model::default()
            },
            time: 0,
            next_tag: 1 << 40,
        }
    }

    pub fn targets(disks: &[SimDisk]) -> Vec<&dyn TargetDisk> {
        disks.iter().map(|disk| disk as &dyn TargetDisk).collect()
    }

    pub fn newest(&self) -> &Image {
        &self.model.states[&self.model.acked]
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        if self.model.open.is_none() {
            self.model.open = Some(self.newest().clone());
            self.store.begin_epoch()?;
        }
        Ok(())
    }

    /// Writes new content to blocks.
    pub fn write(&mut self, disk: usize, block: usize, count: usize) -> Result<(), StoreError> {
        self.begin()?;
        let tags: Vec<Tag> = (0..count).map(|at| self.next_tag + at as u64).collect();
        self.next_tag += count as u64;
        let data: Vec<u8> = tags
            .iter()
            .enumerate()
            .flat_map(|(at, tag)| content(*tag, block_len(block + at)))
            .collect();
        let cells = &mut self.model.open.as_mut().unwrap()[disk][block..block + count];
        cells.copy_from_slice(&tags);
        self.store.write(
            disk_index(disk),
            (block * BLOCK_SIZE) as u64,
            &data,
            digest(&data),
        )
    }

    pub fn zero(&mut self, disk: usize, block: usize, count: usize) -> Result<(), StoreError> {
        self.begin()?;
        self.model.open.as_mut().unwrap()[disk][block..block + count].fill(0);
        let len: usize = (block..block + count).map(block_len).sum();
        self.store
            .zero(disk_index(disk), (block * BLOCK_SIZE) as u64, len as u64)
    }

    /// Ends the open epoch, or an empty one.
    pub fn commit(&mut self, offered: Offered) -> Result<EpochNumber, StoreError> {
        self.begin()?;
        let (epoch, _) = self.store.open_epoch().unwrap();
        self.time += 1;
        self.expect(epoch, offered);
        let done = self.store.commit_epoch(spec(self.time), offered)?;
        assert_eq!(done.epoch, epoch);
        self.acknowledged(epoch);
        Ok(epoch)
    }

    fn expect(&mut self, epoch: EpochNumber, offered: Offered) {
        let image = self.model.open.take().unwrap();
        self.model.states.insert(epoch, image);
        if offered == Offered::AsPoint {
            self.model.perhaps.push(epoch);
        }
    }

    fn acknowledged(&mut self, epoch: EpochNumber) {
        self.model.acked = epoch;
        self.model.offered.append(&mut self.model.perhaps);
    }

    pub fn abort(&mut self) {
        self.store.abort_epoch();
        self.model.open = None;
    }

    pub fn raise(&mut self) -> Result<(), StoreError> {
        let generation = self.store.generation() + 1;
        self.store.raise_generation(generation)?;
        self.model.generation = generation;
        Ok(())
    }

    pub fn step(&mut self) -> Result<bool, StoreError> {
        let targets = Self::targets(&self.disks);
        Ok(self.store.apply_step(&targets, BUDGET)?.up_to_date)
    }

    /// One step, in which something else is done with the store whenever the step does not hold it.
    pub fn step_among_others(&mut self, rng: &mut Rng) -> Result<bool, StoreError> {
        let disks = self.disks.clone();
        let mut others = Others {
            world: self,
            rng,
            failed: None,
        };
        let done = apply_step_of(&mut others, &Self::targets(&disks), BUDGET)?.up_to_date;
        match others.failed {
            Some(error) => Err(error),
            None => Ok(done && self.store.lag_bytes() == 0),
        }
    }

    pub fn apply(&mut self) -> Result<(), StoreError> {
        while !self.step()? {}
        Ok(())
    }

    pub fn drop_point(&mut self, epoch: EpochNumber) -> Result<(), StoreError> {
        self.model.offered.retain(|known| *known != epoch);
        self.model.perhaps.push(epoch);
        self.store.drop_points(&[epoch])?;
        self.model.perhaps.clear();
        Ok(())
    }

    /// Rolls to a point; gives an open epoch up first.
    pub fn roll(&mut self, to: EpochNumber) -> Result<(), StoreError> {
        self.abort();
        self.apply()?;
        self.time += 1;
        // The instant before may become a point of its own.
        let newest = self.newest().clone();
        let mark = EpochNumber(self.store_last() + 1);
        if !self.model.offered.contains(&self.model.acked) {
            self.model.states.insert(mark, newest);
            self.model.perhaps.push(mark);
        }
        let mut roll = self.store.begin_roll(to, spec(self.time))?;
        if self.store.committed() != self.model.acked {
            self.acknowledged(mark);
        }
        while !self.store.roll_step(&mut roll, BUDGET)?.complete {}
        self.model.open = Some(self.model.states[&to].clone());
        self.expect(roll.epoch(), Offered::AsPoint);
        self.time += 1;
        self.store.finish_roll(&roll, spec(self.time))?;
        self.acknowledged(roll.epoch());
        self.apply()
    }

    fn store_last(&self) -> u64 {
        self.store.last_epoch().0
    }

    /// What is left after power loss, opened again; an error is a broken promise.
    pub fn crash(&self, rng: &mut Rng) -> Result<Self, String> {
        let (power, storage, disks) = self.wreck(rng);
        self.reopen(power, storage, disks)
    }

    /// What is left after power loss.
    pub fn wreck(&self, rng: &mut Rng) -> (Power, SimStorage, Vec<SimDisk>) {
        let power = Power::new();
        let storage = self.storage.crash(rng, &power);
        let disks = self.disks.iter().map(|disk| disk.crash(rng, &power)).collect();
        (power, storage, disks)
    }

    pub fn reopen(&self, power: Power, storage: SimStorage, disks: Vec<SimDisk>) -> Result<Self, String> {
        let options = OpenOptions {
            disks: Some(table()),
            capacity: 0,
        };
        let (mut store, report) =
            Store::open(storage.clone(), options).map_err(|err| format!("open: {err}"))?;
        if !report.damage.is_empty() {
            return Err(format!("damage reported: {:?}", report.damage));
        }
        let targets = Self::targets(&disks);
        store
            .apply_all(&targets, BUDGET)
            .map_err(|err| format!("apply: {err}"))?;
        store.set_memory(MEMORY);
        let mut model = self.model.clone();
        if store.generation() < model.generation {
            return Err(format!("generation {} is lost", model.generation));
        }
        let committed = store.committed();
        if committed < model.acked {
            return Err(format!("acknowledged {}, found {committed}", model.acked));
        }
        if !model.states.contains_key(&committed) {
            return Err(format!("epoch {committed} was never complete"));
        }
        let offered: Vec<EpochNumber> = store.points().map(|point| point.epoch).collect();
        if let Some(lost) = model.offered.iter().find(|epoch| !offered.contains(epoch)) {
            return Err(format!("point {lost} is lost"));
        }
        if let Some(new) = offered
            .iter()
            .find(|epoch| !model.offered.contains(epoch) && !model.perhaps.contains(epoch))
        {
            return Err(format!("point {new} should not be on offer"));
        }
        model.acked = committed;
        model.offered = offered;
        model.perhaps.clear();
        model.open = None;
        let mut world = Self {
            power,
            storage,
            disks,
            store,
            model,
            time: self.time,
            next_tag: self.next_tag + (1 << 20),
        };
        world.check()?;
        Ok(world)
    }

    /// Opens a damaged copy and reads every point: `true` when the damage was noticed, `false` when nothing depended on
    /// it; an error when something wrong was read as if it were right.
    pub fn look(&self, storage: SimStorage, disks: &[SimDisk]) -> Result<bool, String> {
        let options = OpenOptions {
            disks: Some(table()),
            capacity: 0,
        };
        let Ok((mut store, report)) = Store::open(storage, options) else {
            return Ok(true);
        };
        let mut noticed = !report.damage.is_empty() || store.committed() < self.model.acked;
        let targets = Self::targets(disks);
        if store.committed() == self.model.acked && store.apply_all(&targets, BUDGET).is_err() {
            return Ok(true);
        }
        for point in &self.model.offered {
            for index in 0..DISKS {
                let mut found = vec![0; SIZE];
                match store.read_at(*point, disk_index(index), 0, &mut found, &targets) {
                    Err(_) => noticed = true,
                    Ok(()) if found == bytes_of(&self.model.states[point][index]) => {}
                    // A point that is not newer than what the store knows, on disks that are ahead of it.
                    Ok(()) if store.committed() < self.model.acked => noticed = true,
                    Ok(()) if noticed && !report.damage.is_empty() => {
                        return Err(format!(
                            "point {point} reads wrong although damage was reported: {:?}",
                            report.damage
                        ));
                    }
                    Ok(()) => return Err(format!("point {point} reads wrong")),
                }
            }
        }
        Ok(noticed)
    }

    /// Compares disks and points with the model. Everything has to be applied.
    pub fn check(&mut self) -> Result<(), String> {
        for (index, disk) in self.disks.iter().enumerate() {
            if disk.content() != bytes_of(&self.newest()[index]) {
                return Err(format!(
                    "disk {index} is not what epoch {} left",
                    self.model.acked
                ));
            }
        }
        self.check_points()
    }

    /// Compares the disks, with what is on its way to them laid over, with the newest epoch. Nothing has to be applied.
    pub fn check_newest(&mut self, rng: &mut Rng) -> Result<(), String> {
        for index in 0..DISKS {
            let wanted = bytes_of(&self.newest()[index]);
            let from = usize::try_from(rng.below(SIZE as u64 / 512)).unwrap() * 512;
            let newer = self
                .store
                .newer_than_disk(disk_index(index), from as u64, (SIZE - from) as u64)
                .map_err(|err| format!("what is newer than disk {index}: {err}"))?;
            // The disk is read later, when more may be on it.
            if rng.one_in(2) && self.store.lag_bytes() > 0 {
                self.step().map_err(|err| err.to_string())?;
            }
            let mut found = self.disks[index].content()[from..].to_vec();
            for piece in newer {
                let start = usize::try_from(piece.offset).unwrap() - from;
                found[start..start + piece.content.len()].copy_from_slice(&piece.content);
            }
            if found != wanted[from..] {
                return Err(format!(
                    "disk {index} and the log are not together what epoch {} left",
                    self.model.acked
                ));
            }
        }
        if (self.store.applied() == self.store.committed()) != (self.store.lag_bytes() == 0)
            && self.store.lag_bytes() > 0
        {
            return Err(format!(
                "a lag of {} bytes, and nothing lags",
                self.store.lag_bytes()
            ));
        }
        Ok(())
    }

    /// Reads every point and compares it with the model.
    pub fn check_points(&mut self) -> Result<(), String> {
        let targets = Self::targets(&self.disks);
        for point in &self.model.offered {
            for index in 0..DISKS {
                let mut found = vec![0; SIZE];
                self.store
                    .read_at(*point, disk_index(index), 0, &mut found, &targets)
                    .map_err(|err| format!("point {point}: {err}"))?;
                let wanted = bytes_of(&self.model.states[point][index]);
                if found != wanted {
                    let block = found
                        .chunks(BLOCK_SIZE)
                        .zip(wanted.chunks(BLOCK_SIZE))
                        .position(|(f, w)| f != w);
                    return Err(format!("point {point} is wrong on disk {index}, block {block:?}"));
                }
            }
        }
        Ok(())
    }
}
