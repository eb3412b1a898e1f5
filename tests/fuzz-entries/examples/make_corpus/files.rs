// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files, and what is said on this machine.

use std::os::unix::fs::FileExt;

use mt_agent::broker::wire::{Answer, Recorded, Request};
use mt_agent::disks::facts::Inventory;
use mt_agent::disks::gate::{PairedDisk, Purpose, RefusalKind};
use mt_blockdev::scsi::ScsiId;
use mt_image::manifest::{Algorithm, Digests, Signer, line};
use mt_image::ova::{Part, write};
use mt_image::ovf::{OvfDisk, render};
use mt_image::spec::{Firmware, parse};
use mt_image::vmdk::writer::{self, WriteOptions};

use crate::Corpus;

const DEBIAN: &str = include_str!("../../../../image/specs/debian.toml");
const ID: &str = "naa.6000c29a71e02b4c9d118e55037faa01";

pub fn make(corpus: &Corpus) {
    requests(corpus);
    answers(corpus);
    broker(corpus);
    agent(corpus);
    installer(corpus);
    image(corpus);
}

fn requests(corpus: &Corpus) {
    for (index, (path, body)) in [
        ("/pairs", r#"{"machine":"db01","disk":"scsi0:1","scsi_id":"naa.6000c29a71e02b4c9d118e55037faa01","overwrite":null}"#),
        ("/passphrase", r#"{"passphrase":"correct horse battery staple"}"#),
        ("/registration", r#"{"seconds":3600}"#),
        ("/export", r#"{"passphrase":"correct horse battery staple"}"#),
        ("/decide", r#"{"verb":"approve","key":"sha256:00","speaks_for":["db01"]}"#),
        ("/check", r#"{"segments":[1,2,3]}"#),
        ("/retention", "{}"),
        ("/exports", r#"{"point":"latest","writable":true}"#),
        ("/points", r#"{"pinned":true}"#),
        ("/commit", r#"{"keep_undo":259200}"#),
        ("/settings", r#"{"policy":null,"group":"web"}"#),
        ("/roll", r#"{"to":"2026-03-02T10:00:00Z"}"#),
        ("/roll", r#"{"to":"before-failback"}"#),
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        corpus.put("socket_request", &format!("{index:02}"), request);
    }
    let deep = format!("{}{}", "[".repeat(9000), "]".repeat(9000));
    for (name, text) in [
        ("chunked", "POST /check HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"seg\r\n10\r\nments\":[1, 2, 3]}\r\n0\r\n\r\n".to_owned()),
        ("get", "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n".to_owned()),
        ("deep", format!("POST /check HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{deep}", deep.len())),
        ("large", format!("POST /check HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n{}", " ".repeat(70000))),
    ] {
        corpus.put("socket_request", name, text);
    }
}

fn answers(corpus: &Corpus) {
    let head = |status: &str, kind: &str| format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n");
    let json = |status: &str, body: &str| {
        format!(
            "{}content-length: {}\r\n\r\n{body}",
            head(status, "application/json"),
            body.len()
        )
    };
    let refusal =
        r#"{"schema":1,"error":"the disk is in use","hint":"unmount it","code":"in-use","exit_code":5}"#;
    for (name, text) in [
        ("refused", json("409 Conflict", refusal)),
        ("pairs", json("200 OK", r#"{"schema":1,"lab":false,"pairs":[]}"#)),
        ("jobs", json("200 OK", r#"{"schema":1,"jobs":[]}"#)),
        ("exports", json("200 OK", r#"{"schema":1,"exports":[]}"#)),
        (
            "segments",
            json("200 OK", r#"{"schema":1,"machine":"db01","findings":["a"]}"#),
        ),
        (
            "events",
            format!(
                "{}\r\n: sign of life\n\nid: 1\ndata: {{\"a\":1}}\n\ndata:[1,\ndata: 2]\n\n",
                head("200 OK", "text/event-stream")
            ),
        ),
        (
            "chunked",
            format!(
                "{}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
                head("200 OK", "application/json")
            ),
        ),
    ] {
        corpus.put("socket_answer", name, text);
    }
}

fn broker(corpus: &Corpus) {
    let id = ScsiId::parse(ID).unwrap();
    let pair = "db01/scsi0:1".to_owned();
    let requests = [
        Request::Disks,
        Request::Pair { pair: pair.clone() },
        Request::Open {
            pair: pair.clone(),
            purpose: Purpose::Write,
        },
        Request::Record {
            pair: pair.clone(),
            scsi_id: id,
            overwrite: true,
        },
    ];
    let framed = |document: &[u8]| {
        [
            &u32::try_from(document.len()).unwrap().to_be_bytes()[..],
            document,
        ]
        .concat()
    };
    for (index, request) in requests.iter().enumerate() {
        let document = serde_json::to_vec(request).unwrap();
        corpus.put("broker", &format!("request-{index}"), framed(&document));
        corpus.put("broker", &format!("document-{index}"), document);
    }
    let recorded = Recorded {
        pair,
        scsi_id: id,
        size: 20 << 30,
        logical_block_size: 512,
        overwrite: false,
        adopted: true,
    };
    let records = serde_json::json!({ "schema": 1, "pairs": [&recorded] });
    corpus.put("broker", "records", records.to_string());
    let _paired: PairedDisk = recorded.paired();
    let answers = [
        Answer::Disks {
            inventory: Inventory::default(),
        },
        Answer::Pair {
            recorded,
            changed: true,
        },
        Answer::Done { changed: false },
        Answer::Refused {
            kind: RefusalKind::NotEmpty,
            what: "it holds xfs".to_owned(),
            hint: "name it".to_owned(),
        },
        Answer::Failed {
            message: "it cannot be opened".to_owned(),
            hint: None,
            exit_code: 4,
        },
    ];
    for (index, answer) in answers.iter().enumerate() {
        corpus.put(
            "broker",
            &format!("answer-{index}"),
            framed(&serde_json::to_vec(answer).unwrap()),
        );
    }
}

fn agent(corpus: &Corpus) {
    let sample = include_str!("../../../../agent/config/agent.toml");
    // The sample as it is, and with all of its settings in force.
    let settings: String = sample
        .lines()
        .filter_map(|line| {
            let line = line.strip_prefix('#').unwrap_or(line);
            let is_setting =
                line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
            is_setting.then(|| format!("{line}\n"))
        })
        .collect();
    corpus.put("agent_config", "sample", &sample[..sample.len().min(8 << 10)]);
    corpus.put("agent_config", "settings", settings);
    corpus.put(
        "agent_config",
        "deep",
        format!("[agent]\nsocket = {}", "[".repeat(4000)),
    );
    for (index, text) in [
        ID,
        "6000C29A-71E0-2B4C-9D11-8E55037FAA01",
        "eui.6000c29a71e02b4c",
        "0x6000c29a71e02b4c",
        "36000c29a71e02b4c9d118e55037faa01",
        "db01/scsi0:1",
        "8:16",
        "SUPER.a",
        "000000000000002a.seg",
        "latest-file-system",
        "2026-03-02 10:00:00",
        "2026-03-02T10:00:00+01:00[Europe/Berlin]",
        "mt01.example.org:9443",
        "[2001:db8::1%eth0]:443",
    ]
    .into_iter()
    .enumerate()
    {
        corpus.put("agent_texts", &format!("{index:02}"), text);
    }
}

fn installer(corpus: &Corpus) {
    corpus.put(
        "kickstart",
        "example",
        include_str!("../../../../installer/tests/fixtures/example.ks"),
    );
    let least = "lang en_US.UTF-8\nkeyboard us\ntimezone UTC --utc\nrootpw --lock\nnetwork --bootproto=dhcp\n\
                 part / --size=4096 --grow\nclearpart --all\npoweroff\n%packages\n@core\n%end\n";
    corpus.put("kickstart", "least", least);
    let hash = format!("$6$saltsalt${}", "0".repeat(86));
    let rows = [
        ("hostname", "mt1.example.org"),
        ("address", "192.0.2.10/24"),
        ("gateway", "192.0.2.1"),
        ("dns", "192.0.2.53, 2001:db8::53"),
        ("ntp", "ntp.example.org"),
        ("timezone", "Europe/Berlin"),
        ("root_password_hash", &hash),
        (
            "ssh_key",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS operator@example.com",
        ),
        ("retention_disk", ID),
    ];
    let mut keys = String::new();
    let mut properties = String::new();
    for (key, value) in rows {
        keys += &format!("{key}={value}\n");
        properties += &format!("    <Property oe:key=\"guestinfo.{key}\" oe:value=\"{value}\"/>\n");
        corpus.put("guestinfo", key, format!("{key}={value}\n"));
    }
    corpus.put("guestinfo", "all", keys);
    let document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment xmlns=\"http://schemas.dmtf.org/ovf/environment/1\" \
         xmlns:oe=\"http://schemas.dmtf.org/ovf/environment/1\" oe:id=\"vm\">\n  <PlatformSection>\n    <Kind>VMware \
         ESXi</Kind>\n  </PlatformSection>\n  <PropertySection>\n{properties}  </PropertySection>\n  <Entity oe:id=\"other\">\n    \
         <PropertySection>\n      <Property oe:key=\"a\" oe:value=\"&lt;&#65;\"/>\n    </PropertySection>\n  \
         </Entity>\n</Environment>\n"
    );
    corpus.put("ovf_environment", "all", document);
    corpus.put("ovf_environment", "deep", "<Environment>".repeat(600));
    corpus.put(
        "console_keys",
        "keys",
        b"root\r\x1b[A\x1bOB\x7f\x15\x1b[200~\x1b\xc3\xbc",
    );
}

fn image(corpus: &Corpus) {
    let spec = parse(DEBIAN).unwrap();
    corpus.put("image_spec", "debian", DEBIAN);
    corpus.put(
        "image_spec",
        "el",
        include_str!("../../../../image/specs/el.toml"),
    );
    let base = ".encoding = \"UTF-8\"\nconfig.version = \"8\"\nvirtualHW.version = \"13\"\n";
    corpus.put("vmx", "without", base);
    corpus.put(
        "vmx",
        "with",
        format!("{base}disk.EnableUUID = \"TRUE\"\r\n# a comment\r\nscsi0:0.present = \"TRUE\"\n"),
    );

    let raw = tempfile::tempfile().unwrap();
    raw.set_len(1 << 20).unwrap();
    raw.write_all_at(b"data", 70_000).unwrap();
    raw.write_all_at(&[7; 100], 700_000).unwrap();
    let disk = tempfile::tempfile().unwrap();
    let options = WriteOptions {
        level: 6,
        threads: 1,
        extent_name: "mt-disk1.vmdk".into(),
        tools_version: 1,
    };
    let summary = writer::write(&raw, 1 << 20, &disk, &options, &mut |_| {}).unwrap();
    let mut disk_bytes = vec![0; usize::try_from(summary.file_size).unwrap()];
    disk.read_exact_at(&mut disk_bytes, 0).unwrap();
    corpus.put("vmdk", "tables-in-front", &disk_bytes);

    let described = OvfDisk {
        href: "mt-disk1.vmdk".into(),
        file_size: summary.file_size,
        capacity: 1 << 20,
        populated: 131_072,
    };
    for (name, algorithm, firmware) in [
        ("sha256", Algorithm::Sha256, Firmware::Efi),
        ("sha1", Algorithm::Sha1, Firmware::Bios),
    ] {
        let ovf = render(&spec, firmware, &described).unwrap();
        corpus.put("ovf", name, &ovf);
        let manifest = line(algorithm, "mt.ovf", Digests::of(&ovf).by(algorithm))
            + &line(algorithm, "mt-disk1.vmdk", Digests::of(&disk_bytes).by(algorithm));
        let certificate = signer().sign("mt.mf", manifest.as_bytes()).unwrap();
        corpus.put(
            "ova_manifest",
            name,
            [manifest.as_bytes(), &[0], certificate.as_bytes()].concat(),
        );
        let parts = [
            Part {
                name: "mt.ovf",
                bytes: &ovf,
            },
            Part {
                name: "mt.mf",
                bytes: manifest.as_bytes(),
            },
            Part {
                name: "mt.cert",
                bytes: certificate.as_bytes(),
            },
        ];
        let file = tempfile::tempfile().unwrap();
        write(&file, &parts, "mt-disk1.vmdk", &disk, summary.file_size, 0).unwrap();
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        corpus.put("ova", name, bytes);
    }
    corpus.put("ovf", "deep", "<Envelope>".repeat(1500));
}

/// A key that signs the manifests; made by `openssl`, and thrown away.
fn signer() -> Signer {
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = (folder.path().join("key"), folder.path().join("cert"));
    let made = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=fuzz", "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Signer::new(&std::fs::read(key).unwrap(), &std::fs::read(certificate).unwrap()).unwrap()
}
