use super::*;
use crate::decoder::{Decoder, Frame};
use crate::frame::{encode, encode_raw};
use crate::fuzz;
use crate::limits::{
    BLOCK_SIZE, BLOCKS_PER_REGION, BODY_BYTES_MAX, FRAME_HEADER_SIZE, MACHINE_DISKS_MAX, NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX, REGION_SIZE, REGION_WINDOW_MAX, TAGS_MAX,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

fn text(max: usize) -> impl Strategy<Value = String> {
    vec(proptest::char::range(' ', '~'), 1..max).prop_map(String::from_iter)
}

fn region() -> impl Strategy<Value = u64> {
    (0..DISK_SIZE_MAX / REGION_SIZE).prop_map(|index| index * REGION_SIZE)
}

fn extents() -> impl Strategy<Value = Vec<Extent>> {
    vec((1_u32..=65_536, 0_u64..5, any::<Digest>()), 1..16).prop_map(|pieces| {
        let mut offset = 0;
        pieces
            .into_iter()
            .map(|(len, gap, digest)| {
                offset = (offset / BLOCK_SIZE + 1 + gap) * BLOCK_SIZE;
                Extent { offset, len, digest }
            })
            .collect()
    })
}

fn ranges() -> impl Strategy<Value = Vec<Range>> {
    vec((1_u64..1 << 30, 0_u64..1 << 20), 1..20).prop_map(|pieces| {
        let mut end = 0;
        pieces
            .into_iter()
            .map(|(len, gap)| {
                let range = Range {
                    offset: end + gap,
                    len,
                };
                end = range.offset + len;
                range
            })
            .collect()
    })
}

fn digests() -> impl Strategy<Value = Digests> {
    (
        region(),
        vec(option::of(any::<Digest>()), 1..=BLOCKS_PER_REGION),
        0_u32..65_536,
    )
        .prop_map(|(offset, blocks, short)| {
            let len = u32::try_from(blocks.len() as u64 * BLOCK_SIZE).unwrap() - short;
            Digests { offset, len, blocks }
        })
}

fn open_pair() -> impl Strategy<Value = OpenPair> {
    let mode = prop_oneof![Just(Mode::Seed), Just(Mode::Verify), Just(Mode::Epoch)];
    (
        mode,
        text(100),
        text(100),
        0..DISK_SIZE_MAX,
        any::<u32>(),
        any::<[u8; 16]>(),
        0..DISK_SIZE_MAX,
        any::<u64>(),
    )
        .prop_map(
            |(
                mode,
                machine,
                disk,
                size,
                logical_block_size,
                resume_seeding_id,
                resume_offset,
                generation,
            )| OpenPair {
                mode,
                machine,
                disk,
                size,
                logical_block_size,
                resume_seeding_id,
                resume_offset,
                generation,
            },
        )
}

fn open_machine() -> impl Strategy<Value = OpenMachine> {
    let disk = (0..DISK_SIZE_MAX, any::<u32>());
    let known = (any::<u64>(), any::<[u8; 16]>(), any::<u64>());
    (text(100), known, vec(disk, 1..20)).prop_map(
        |(machine, (generation, store_id, confirmed_epoch), disks)| OpenMachine {
            machine,
            generation,
            store_id,
            confirmed_epoch,
            disks: disks
                .into_iter()
                .enumerate()
                .map(|(index, (size, logical_block_size))| MachineDisk {
                    name: format!("scsi0:{index}"),
                    size,
                    logical_block_size,
                })
                .collect(),
        },
    )
}

fn end_epoch() -> impl Strategy<Value = EndEpoch> {
    let consistency = prop_oneof![
        Just(Consistency::Crash),
        Just(Consistency::FileSystem),
        Just(Consistency::Application)
    ];
    let tag = (text(40), text(40)).prop_map(|(key, value)| Tag { key, value });
    let totals =
        (any::<u64>(), any::<u64>(), any::<Digest>()).prop_map(|(bytes_sent, bytes_zeroed, chain)| {
            EpochTotals {
                bytes_sent,
                bytes_zeroed,
                chain,
            }
        });
    (
        consistency,
        0_u64..1 << 48,
        text(60),
        vec(tag, 0..=TAGS_MAX),
        totals,
    )
        .prop_map(|(consistency, time_ms, name, tags, totals)| EndEpoch {
            consistency,
            time_ms,
            name,
            tags,
            totals,
        })
}

fn epoch_message() -> impl Strategy<Value = Message> {
    let disk = 0..u16::try_from(MACHINE_DISKS_MAX).unwrap();
    prop_oneof![
        open_machine().prop_map(Message::OpenMachine),
        (any::<u64>(), any::<[u8; 16]>(), any::<u64>()).prop_map(|(generation, store_id, newest_epoch)| {
            Message::MachineOpened(MachineOpened {
                generation,
                store_id,
                newest_epoch,
            })
        }),
        any::<[u8; 16]>().prop_map(|resume_epoch_id| Message::BeginEpoch(BeginEpoch { resume_epoch_id })),
        (any::<[u8; 16]>(), any::<u64>())
            .prop_map(|(epoch_id, epoch)| Message::EpochBegun(EpochBegun { epoch_id, epoch })),
        end_epoch().prop_map(Message::EndEpoch),
        (any::<u64>(), any::<u64>())
            .prop_map(|(epoch, point)| Message::EpochDurable(EpochDurable { epoch, point })),
        Just(Message::AbandonEpoch),
        Just(Message::EpochAbandoned),
        (disk.clone(), extents())
            .prop_map(|(disk, extents)| Message::EpochExtents(EpochExtents { disk, extents })),
        (disk, ranges())
            .prop_map(|(disk, ranges)| Message::EpochZeroRanges(EpochZeroRanges { disk, ranges })),
        (0..DISK_SIZE_MAX).prop_map(|offset| Message::Received { offset }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        epoch_message(),
        any::<u64>().prop_map(|token| Message::Ping { token }),
        any::<u64>().prop_map(|token| Message::Pong { token }),
        Just(Message::Close),
        (any::<u16>(), text(200), text(200)).prop_map(|(code, text, hint)| Message::Refused(Refusal {
            code: ErrorCode::from_number(code),
            text,
            hint
        })),
        open_pair().prop_map(Message::OpenPair),
        (
            any::<[u8; 16]>(),
            region(),
            any::<u64>(),
            1..=REGION_WINDOW_MAX,
            text(40)
        )
            .prop_map(
                |(seeding_id, start, generation, region_window, scsi_id)| Message::PairOpened(PairOpened {
                    seeding_id,
                    start,
                    generation,
                    region_window,
                    scsi_id
                })
            ),
        digests().prop_map(Message::Digests),
        (region(), 1..=u16::MAX)
            .prop_map(|(offset, blocks)| Message::WantSubDigests(WantSubDigests { offset, blocks })),
        (region(), 1..=u16::MAX, vec(any::<Digest>(), 1..=256)).prop_map(|(offset, blocks, digests)| {
            Message::SubDigests(SubDigests {
                offset,
                blocks,
                digests,
            })
        }),
        extents().prop_map(Message::Extents),
        ranges().prop_map(Message::ZeroRanges),
        region().prop_map(|offset| Message::RegionDone { offset }),
        (0..DISK_SIZE_MAX).prop_map(|offset| Message::Durable { offset }),
        (any::<u64>(), any::<u64>()).prop_map(|(bytes_sent, bytes_zeroed)| Message::SeedingEnd(SeedingEnd {
            bytes_sent,
            bytes_zeroed
        })),
        Just(Message::SeedingDone),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_message_round_trips_in_any_pieces(message in message(), stream in any::<u16>(), piece in 1_usize..5000) {
        let payload = vec![0x5a; message.payload_len()];
        let mut bytes = encode(&message, stream, 1);
        bytes.extend_from_slice(&payload);
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for chunk in bytes.chunks(piece) {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        prop_assert_eq!(frames, vec![Frame { stream, message, payload }]);
    }

    #[test]
    fn any_flipped_bit_of_header_or_body_is_noticed(message in message(), at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = encode(&message, 1, 1);
        let index = at.index(bytes.len());
        bytes[index] ^= 1_u8 << bit;
        bytes.resize(bytes.len() + message.payload_len(), 0);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        prop_assert!(decoder.next_frame().is_err());
    }

    #[test]
    fn any_bytes_are_met_without_panic(bytes in vec(any::<u8>(), 0..4096)) {
        fuzz::hello(&bytes);
        fuzz::message(&bytes);
        fuzz::frames(&bytes);
    }

    #[test]
    fn a_changed_body_decodes_to_itself_or_not_at_all(message in message(), at in any::<proptest::sample::Index>(), value in any::<u8>()) {
        let mut body = Vec::new();
        message.encode_body(&mut body);
        if !body.is_empty() {
            let index = at.index(body.len());
            body[index] = value;
        }
        let payload_len = u32::try_from(message.payload_len()).unwrap();
        let mut input = vec![message.kind()];
        input.extend_from_slice(&payload_len.to_le_bytes());
        input.extend_from_slice(&body);
        fuzz::message(&input);
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_from_the_header_alone() {
    for (body, payload, field) in [
        (BODY_BYTES_MAX + 1, 0, "body length"),
        (0, PAYLOAD_BYTES_MAX + 1, "payload length"),
        (0, usize::try_from(u32::MAX).unwrap(), "payload length"),
    ] {
        let frame = encode_raw(kind::EXTENTS, false, 1, 1, &vec![0; body], payload);
        let mut decoder = Decoder::new();
        decoder.push(&frame[..FRAME_HEADER_SIZE]);
        match decoder.next_frame() {
            Err(WireError::TooLarge { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn lists_that_lie_are_refused() {
    let extent = |offset: u64, len: u32| {
        let mut bytes = offset.to_le_bytes().to_vec();
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&[0; 36]);
        bytes
    };
    let list = |count: u32, items: &[Vec<u8>]| {
        let mut body = count.to_le_bytes().to_vec();
        body.extend(items.iter().flatten());
        body
    };
    let rows: [(&str, Vec<u8>, usize); 9] = [
        ("nothing in it", list(0, &[]), 0),
        ("more than it holds", list(2, &[extent(0, 4096)]), 4096),
        (
            "fewer than it holds",
            list(1, &[extent(0, 4096), extent(8192, 4096)]),
            4096,
        ),
        ("count beyond the limit", list(u32::MAX, &[]), 0),
        ("overlap", list(2, &[extent(0, 4096), extent(4095, 4096)]), 8192),
        (
            "out of order",
            list(2, &[extent(65_536, 4096), extent(0, 4096)]),
            8192,
        ),
        ("over the border of a block", list(1, &[extent(65_535, 2)]), 2),
        ("empty extent", list(1, &[extent(0, 0)]), 0),
        ("past any disk", list(1, &[extent(u64::MAX, 4096)]), 4096),
    ];
    for (name, body, payload_len) in rows {
        assert!(
            Message::decode(kind::EXTENTS, &body, payload_len).is_err(),
            "{name}"
        );
    }
    assert!(Message::decode(kind::EXTENTS, &list(1, &[extent(0, 4096)]), 4096).is_ok());
    assert!(
        Message::decode(kind::EXTENTS, &list(1, &[extent(0, 4096)]), 4095).is_err(),
        "payload shorter than extents"
    );
}

#[test]
fn unknown_kinds_are_skipped_only_when_their_sender_allows_it() {
    let mut decoder = Decoder::new();
    decoder.push(&encode_raw(200, true, 1, 1, b"something new", 3));
    decoder.push(b"abc");
    decoder.push(&encode(&Message::Ping { token: 7 }, 0, 2));
    let frame = decoder.next_frame().unwrap().unwrap();
    assert_eq!(frame.message, Message::Ping { token: 7 });

    let mut decoder = Decoder::new();
    decoder.push(&encode_raw(200, false, 1, 1, b"something new", 0));
    assert_eq!(
        decoder.next_frame(),
        Err(WireError::Unknown {
            field: "message kind",
            found: 200
        })
    );
}

#[test]
fn lost_repeated_and_moved_frames_break_the_sequence() {
    let frame = |sequence| encode(&Message::Close, 0, sequence);
    for (first, second) in [(1, 3), (1, 1), (2, 1)] {
        let mut decoder = Decoder::new();
        decoder.push(&frame(first));
        decoder.push(&frame(second));
        let error = loop {
            match decoder.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{first}, {second} was accepted"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, WireError::Sequence { .. }), "{error}");
    }
}

#[test]
fn names_with_control_characters_are_refused() {
    for machine in ["", "a\nb", "a\x1b[31m", "a\0"] {
        let open = OpenPair {
            mode: Mode::Seed,
            machine: machine.into(),
            disk: "d".into(),
            size: 1,
            logical_block_size: 512,
            resume_seeding_id: [0; 16],
            resume_offset: 0,
            generation: 0,
        };
        let mut body = Vec::new();
        Message::OpenPair(open).encode_body(&mut body);
        assert_eq!(
            Message::decode(kind::OPEN_PAIR, &body, 0),
            Err(WireError::NotText {
                field: "machine name"
            })
        );
    }
}

#[test]
fn texts_are_cut_at_a_character_border() {
    let refusal = Refusal {
        code: ErrorCode::Internal,
        text: "\u{e4}".repeat(TEXT_BYTES_MAX),
        hint: String::new(),
    };
    let mut body = Vec::new();
    Message::Refused(refusal).encode_body(&mut body);
    let Message::Refused(again) = Message::decode(kind::REFUSED, &body, 0).unwrap() else {
        panic!("not a refusal")
    };
    assert_eq!(again.text, "\u{e4}".repeat(TEXT_BYTES_MAX / 2));
}

#[test]
fn the_largest_machine_fits_a_frame() {
    let open = OpenMachine {
        machine: "m".repeat(NAME_BYTES_MAX),
        generation: u64::MAX,
        store_id: [7; 16],
        confirmed_epoch: u64::MAX,
        disks: (0..MACHINE_DISKS_MAX)
            .map(|index| MachineDisk {
                name: format!("{index:0>width$}", width = NAME_BYTES_MAX),
                size: DISK_SIZE_MAX,
                logical_block_size: 4096,
            })
            .collect(),
    };
    let mut body = Vec::new();
    open.encode(&mut body);
    assert!(body.len() <= BODY_BYTES_MAX, "{} bytes", body.len());
    assert_eq!(
        Message::decode(kind::OPEN_MACHINE, &body, 0),
        Ok(Message::OpenMachine(open))
    );
}

#[test]
fn machines_and_ends_that_cannot_be_are_refused() {
    let disk = |name: &str| MachineDisk {
        name: name.into(),
        size: 1 << 30,
        logical_block_size: 512,
    };
    for disks in [
        vec![],
        vec![disk("a"), disk("a")],
        vec![disk("")],
        vec![disk("a\n")],
        (0..=MACHINE_DISKS_MAX)
            .map(|index| disk(&index.to_string()))
            .collect(),
    ] {
        let mut body = Vec::new();
        let open = OpenMachine {
            machine: "m".into(),
            generation: 0,
            store_id: [0; 16],
            confirmed_epoch: 0,
            disks,
        };
        open.encode(&mut body);
        assert!(Message::decode(kind::OPEN_MACHINE, &body, 0).is_err(), "{open:?}");
    }
    let end = EndEpoch {
        consistency: Consistency::Crash,
        time_ms: 1_772_446_447_000,
        name: String::new(),
        tags: vec![],
        totals: EpochTotals::default(),
    };
    let tag = |key: &str, value: &str| Tag {
        key: key.into(),
        value: value.into(),
    };
    for (what, bad) in [
        (
            "time",
            EndEpoch {
                time_ms: u64::MAX,
                ..end.clone()
            },
        ),
        (
            "name",
            EndEpoch {
                name: "a\x1b[31m".into(),
                ..end.clone()
            },
        ),
        (
            "key",
            EndEpoch {
                tags: vec![tag("", "x")],
                ..end.clone()
            },
        ),
        (
            "value",
            EndEpoch {
                tags: vec![tag("x", "\u{7f}")],
                ..end.clone()
            },
        ),
        (
            "tags",
            EndEpoch {
                tags: vec![tag("x", "y"); TAGS_MAX + 1],
                ..end.clone()
            },
        ),
    ] {
        let mut body = Vec::new();
        bad.encode(&mut body);
        assert!(Message::decode(kind::END_EPOCH, &body, 0).is_err(), "{what}");
    }
    let mut body = Vec::new();
    end.encode(&mut body);
    assert_eq!(
        Message::decode(kind::END_EPOCH, &body, 0),
        Ok(Message::EndEpoch(end))
    );
}

/// What was sent and what arrived have the same totals only when they are the same, in the same order.
#[test]
fn totals_tell_any_two_sequences_apart() {
    let extent = |offset: u64, digest: u8| Extent {
        offset,
        len: 4096,
        digest: [digest; 32],
    };
    let totals = |steps: &[(u16, Extent)]| {
        steps
            .iter()
            .fold(EpochTotals::default(), |mut totals, (disk, extent)| {
                totals.add_extent(*disk, extent);
                totals
            })
    };
    let sent = [(0, extent(0, 1)), (1, extent(4096, 2))];
    let others: [&[(u16, Extent)]; 6] = [
        &[sent[0]],
        &[sent[1], sent[0]],
        &[sent[0], sent[1], sent[1]],
        &[(1, sent[0].1), sent[1]],
        &[(0, extent(8192, 1)), sent[1]],
        &[(0, extent(0, 3)), sent[1]],
    ];
    for other in others {
        assert_ne!(totals(&sent), totals(other), "{other:?}");
    }
    let mut zeros = totals(&sent[..1]);
    zeros.add_zeros(
        1,
        &Range {
            offset: 4096,
            len: 4096,
        },
    );
    assert_eq!((zeros.bytes_sent, zeros.bytes_zeroed), (4096, 4096));
    assert_ne!(zeros.chain, totals(&sent).chain);
}
