use proptest::prelude::*;

use super::*;

const VMWARE: &str = "naa.6000c29a71e02b4c9d118e55037faa01";

/// A page 0x83 of these designators, each as (byte 1, value).
fn page83(designators: &[(u8, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in designators {
        body.extend_from_slice(&[0x01, *kind, 0x00, u8::try_from(value.len()).unwrap()]);
        body.extend_from_slice(value);
    }
    let mut page = vec![0x00, 0x83];
    page.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    page.extend_from_slice(&body);
    page
}

fn bytes(id: &str) -> Vec<u8> {
    ScsiId::parse(id).unwrap().as_bytes().to_vec()
}

#[test]
fn every_notation_of_one_id_reads_as_the_same_id() {
    let canonical = ScsiId::parse(VMWARE).unwrap();
    for text in [
        "naa.6000c29a71e02b4c9d118e55037faa01",
        "NAA.6000C29A71E02B4C9D118E55037FAA01",
        "0x6000c29a71e02b4c9d118e55037faa01",
        "wwn-0x6000c29a71e02b4c9d118e55037faa01",
        "6000c29a71e02b4c9d118e55037faa01",
        "36000c29a71e02b4c9d118e55037faa01",
        "scsi-36000c29a71e02b4c9d118e55037faa01",
        "  6000C29A71E02b4c9d118e55037faa01\n",
    ] {
        assert_eq!(ScsiId::parse(text), Ok(canonical), "{text}");
    }
    assert_eq!(canonical.to_string(), VMWARE);
    assert_eq!(
        ScsiId::parse("eui.0025385b71b0a1f2").unwrap().to_string(),
        "eui.0025385b71b0a1f2"
    );
    assert_eq!(
        ScsiId::parse("20025385b71b0a1f2").unwrap().to_string(),
        "eui.0025385b71b0a1f2"
    );
    assert_ne!(
        ScsiId::parse("naa.5000c29a71e02b4c"),
        ScsiId::parse("eui.5000c29a71e02b4c")
    );
}

#[test]
fn what_is_not_an_id_is_refused_by_its_own_reason() {
    assert!(matches!(
        ScsiId::parse(""),
        Err(ScsiIdError::Length { digits: 0, .. })
    ));
    assert!(matches!(
        ScsiId::parse("naa.6000c29a71e0"),
        Err(ScsiIdError::Length { digits: 12, .. })
    ));
    assert!(matches!(
        ScsiId::parse("naa.6000c29a71e02b4c9d118e55037faa0g"),
        Err(ScsiIdError::Digit { bad: 'g', .. })
    ));
    assert!(matches!(
        ScsiId::parse("naa.e000c29a71e02b4c"),
        Err(ScsiIdError::Authority { nibble: 0xe, .. })
    ));
    assert!(matches!(
        ScsiId::parse("eui.0000000000000000"),
        Err(ScsiIdError::Zero { .. })
    ));
    assert!(matches!(
        ScsiId::parse("/dev/sdb"),
        Err(ScsiIdError::Digit { bad: '/', .. })
    ));
    assert!(matches!(
        ScsiId::parse("t10.VMware Virtual disk"),
        Err(ScsiIdError::Digit { .. })
    ));
    // Digits that are not ASCII must neither pass nor panic on a byte boundary.
    assert!(matches!(
        ScsiId::parse("3\u{fc}\u{fc}"),
        Err(ScsiIdError::Digit { .. })
    ));
    assert!(matches!(
        ScsiId::parse("\u{fc}00"),
        Err(ScsiIdError::Digit { .. })
    ));
}

#[test]
fn the_page_of_a_vmware_disk_gives_its_id() {
    let page = page83(&[(0x03, &bytes(VMWARE))]);
    let designators = parse_vpd83(&page).unwrap();
    assert_eq!(identity(&designators).unwrap().to_string(), VMWARE);
    // The worked example of the module documentation, byte for byte.
    let documented = [
        0x00, 0x83, 0x00, 0x14, 0x01, 0x03, 0x00, 0x10, 0x60, 0x00, 0xc2, 0x9a, 0x71, 0xe0, 0x2b, 0x4c, 0x9d,
        0x11, 0x8e, 0x55, 0x03, 0x7f, 0xaa, 0x01,
    ];
    assert_eq!(page, documented);
}

#[test]
fn the_order_of_preference_is_the_kernels() {
    let eui16 = [0xaa; 16];
    let eui12 = [0xbb; 12];
    let eui8 = [0xcc; 8];
    let naa6 = bytes(VMWARE);
    let naa5 = bytes("naa.5000c29a71e02b4c");
    let naa2 = bytes("naa.2000c29a71e02b4c");
    let naa3 = bytes("naa.3000c29a71e02b4c");
    let order: [(u8, &[u8]); 7] = [
        (3, &naa6),
        (2, &eui16),
        (2, &eui12),
        (3, &naa5),
        (3, &naa2),
        (2, &eui8),
        (3, &naa3),
    ];
    for worse in 1..order.len() {
        for better in 0..worse {
            for pair in [[order[better], order[worse]], [order[worse], order[better]]] {
                let id = identity(&parse_vpd83(&page83(&pair)).unwrap()).unwrap();
                assert_eq!(
                    id.as_bytes(),
                    order[better].1,
                    "rank {better} before rank {worse}"
                );
            }
        }
    }
    // Two of the same rank: the later one, as in the kernel.
    let other = bytes("naa.6000c29a71e02b4c9d118e55037faa02");
    let id = identity(&parse_vpd83(&page83(&[(3, &naa6), (3, &other)])).unwrap()).unwrap();
    assert_eq!(id.as_bytes(), other);
}

#[test]
fn text_ports_and_zeros_are_never_an_identity() {
    let cases: [(u8, &[u8]); 7] = [
        (0x01, b"VMware  Virtual disk 6000c29a71e02b4c"),
        (0x00, &[0x60; 16]),
        (0x08, b"naa.6000c29a71e02b4c9d118e55037faa01"),
        (0x13, &[0x60; 16]),
        (0x23, &[0x60; 16]),
        (0x02, &[0; 8]),
        (0x03, &[0x70; 16]),
    ];
    for case in cases {
        assert_eq!(
            identity(&parse_vpd83(&page83(&[case])).unwrap()),
            None,
            "{case:02x?}"
        );
    }
    assert_eq!(
        identity(&parse_vpd83(&[0, 0x83, 0, 0]).unwrap()),
        None,
        "an empty page has no identity"
    );
}

#[test]
fn an_eight_byte_value_that_starts_with_6_is_taken_as_the_kernel_takes_it() {
    // QEMU: -device scsi-hd,wwn=0x6000c29000000001 shows this designator.
    let page = page83(&[(0x03, &[0x60, 0x00, 0xc2, 0x90, 0, 0, 0, 1])]);
    assert_eq!(
        identity(&parse_vpd83(&page).unwrap()).unwrap().to_string(),
        "naa.6000c29000000001"
    );
}

#[test]
fn a_damaged_page_is_an_error_and_not_half_a_list() {
    assert_eq!(parse_vpd83(&[]), Err(VpdError::Short { found: 0, needed: 4 }));
    assert_eq!(
        parse_vpd83(&[0, 0x80, 0, 0]),
        Err(VpdError::PageCode {
            found: 0x80,
            expected: 0x83
        })
    );
    assert_eq!(
        parse_vpd83(&[0, 0x83, 0, 9, 1]),
        Err(VpdError::Truncated {
            declared: 9,
            found: 1
        })
    );
    let mut page = page83(&[(0x03, &bytes(VMWARE)), (0x03, &[0x60; 16])]);
    page[4 + 20 + 3] = 0x40;
    assert_eq!(
        parse_vpd83(&page),
        Err(VpdError::Designator {
            offset: 24,
            declared: 0x40,
            found: 16
        })
    );
    // Two bytes of zero padding are not damage, two other bytes are.
    assert!(parse_vpd83(&[0, 0x83, 0, 2, 0, 0]).unwrap().is_empty());
    assert_eq!(
        parse_vpd83(&[0, 0x83, 0, 2, 1, 3]),
        Err(VpdError::Designator {
            offset: 4,
            declared: 4,
            found: 2
        })
    );
    // Bytes after the declared length do not belong to the page.
    let mut page = page83(&[(0x03, &bytes(VMWARE))]);
    page.extend_from_slice(&[0xff; 32]);
    assert_eq!(parse_vpd83(&page).unwrap().len(), 1);
}

#[test]
fn serial_and_inquiry_text_are_trimmed_and_printable() {
    assert_eq!(
        parse_vpd80(b"\0\x80\0\x08  ab12 \0").unwrap(),
        Some("ab12".to_owned())
    );
    assert_eq!(parse_vpd80(b"\0\x80\0\x04    ").unwrap(), None);
    assert_eq!(
        parse_vpd80(b"\0\x80\0\x04a\x1b[2").unwrap(),
        Some("a?[2".to_owned())
    );
    assert_eq!(parse_vpd00(b"\0\0\0\x03\0\x80\x83").unwrap(), vec![0, 0x80, 0x83]);
    let mut answer = vec![0_u8; 36];
    answer[8..32].copy_from_slice(b"VMware  Virtual disk    ");
    answer[32..36].copy_from_slice(b"2.0 ");
    let inquiry = parse_inquiry(&answer).unwrap();
    assert_eq!(
        (inquiry.vendor.as_str(), inquiry.model.as_str()),
        ("VMware", "Virtual disk")
    );
    assert_eq!(
        (inquiry.device_type, inquiry.removable, inquiry.revision.as_str()),
        (0, false, "2.0")
    );
    assert_eq!(
        parse_inquiry(&answer[..35]),
        Err(VpdError::Short {
            found: 35,
            needed: 36
        })
    );
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*") {
        let _ = ScsiId::parse(&text);
    }

    #[test]
    fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..512)) {
        fuzz_vpd83(&data);
        let _ = parse_vpd80(&data);
        let _ = parse_vpd00(&data);
        let _ = parse_inquiry(&data);
    }

    #[test]
    fn any_designators_are_read_back_in_order(
        values in proptest::collection::vec(
            (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..32)), 0..12)
    ) {
        let list: Vec<(u8, &[u8])> = values.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
        let page = page83(&list);
        prop_assert_eq!(parse_vpd83(&page).unwrap().len(), values.len());
        fuzz_vpd83(&page);
        for cut in 4..page.len() {
            prop_assert!(parse_vpd83(&page[..cut]).is_err(), "a page cut at {} must not pass", cut);
        }
    }

    #[test]
    fn an_id_survives_its_text(
        value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 8..=8),
            proptest::collection::vec(any::<u8>(), 16..=16),
        ],
        authority in prop_oneof![Just(2_u8), Just(3), Just(5), Just(6)]
    ) {
        let mut value = value;
        value[0] = (authority << 4) | (value[0] & 0xf);
        let id = ScsiId::from_bytes(ScsiIdKind::Naa, &value).unwrap();
        prop_assert_eq!(ScsiId::parse(&id.to_string()).unwrap(), id);
        prop_assert_eq!(ScsiId::parse(&id.to_string().to_uppercase()).unwrap(), id);
        prop_assert_eq!(id.as_bytes(), value.as_slice());
    }
}
