//! What a client of the local socket may do without hurting the agent or other clients.
//!
//! Each case sends something wrong and then asks for status in the usual way: the answer to the wrong thing matters
//! less than that the next client is served as if nothing had been.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use mt_agent::status::routes::{BODY_BYTES_MAX, EVENT_READERS_MAX};
use mt_agent::status::server::{CLIENTS_MAX, CLIENTS_ROOT_MAX, REQUEST_TIME_MAX, WRITE_TIME_MAX};
use support::{PATIENCE, Served, id, read_to_end};

fn post(body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST /v1/pairs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// Status line and document of an answer.
fn parts(answer: &str) -> (u16, serde_json::Value) {
    let code = answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (code, serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn wrong_requests_are_refused_in_json() {
    let served = Served::start(&[b""]);
    let deep = [vec![b'['; 60_000], vec![b']'; 5]].concat();
    let deep_field = format!("{{\"machine\":{}1{}}}", "{\"a\":".repeat(9000), "}".repeat(9000)).into_bytes();
    let huge = vec![b' '; BODY_BYTES_MAX + 1];
    let unknown_field = br#"{"machine":"a","disk":"b","scsi_id":"x","device":"/dev/sda"}"#.to_vec();
    let control =
        br#"{"machine":"a\u0000\u001b[2J","disk":"b","scsi_id":"naa.6000c29a71e02b4c9d118e55037fab01"}"#;
    let rows: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("no JSON", post(b"hello"), 400, "bad-request"),
        ("nothing", post(b""), 400, "bad-request"),
        ("zero bytes", post(&[0; 100]), 400, "bad-request"),
        (
            "not UTF-8",
            post(b"{\"machine\":\"\xff\xfe\"}"),
            400,
            "bad-request",
        ),
        ("deep", post(&deep), 400, "bad-request"),
        ("deep in a field", post(&deep_field), 400, "bad-request"),
        ("another shape", post(b"[1,2,3]"), 400, "bad-request"),
        (
            "a field that is not ours",
            post(&unknown_field),
            400,
            "bad-request",
        ),
        (
            "a number for a name",
            post(br#"{"machine":1,"disk":"b","scsi_id":"x"}"#),
            400,
            "bad-request",
        ),
        ("control characters in a name", post(control), 400, "bad-name"),
        (
            "a field twice",
            post(br#"{"machine":"a","machine":"b","disk":"b","scsi_id":"x"}"#),
            400,
            "bad-request",
        ),
        ("too large", post(&huge), 413, "too-large"),
        ("another path", get("/v2/status"), 404, "not-found"),
        ("up and away", get("/v1/../../etc/passwd"), 404, "not-found"),
        ("no job", get("/v1/jobs/9223372036854775807"), 404, "not-found"),
        (
            "no number",
            get("/v1/jobs/99999999999999999999"),
            400,
            "bad-request",
        ),
        (
            "another method",
            b"PATCH /v1/pairs HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            405,
            "method-not-allowed",
        ),
        (
            "not UTF-8 in a path",
            b"DELETE /v1/pairs/%ff/%fe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            400,
            "bad-request",
        ),
        (
            "zero byte in a path",
            b"DELETE /v1/pairs/a%00/b HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            400,
            "bad-name",
        ),
    ];
    for (what, request, code, word) in rows {
        let answer = served.raw(&request);
        let (found, document) = parts(&answer);
        assert_eq!(
            (found, document["code"].as_str()),
            (code, Some(word)),
            "{what}: {answer}"
        );
        assert_eq!(document["schema"].as_u64(), Some(1), "{what}");
        let text = document["error"].as_str().unwrap();
        assert!(!text.chars().any(char::is_control), "{what}: {text:?}");
    }
    assert_eq!(
        served.json(&["pair", "list"])["pairs"].as_array().unwrap().len(),
        0,
        "nothing was changed"
    );
    served.stop();
}

#[test]
fn what_is_no_request_at_all_ends_only_its_own_connection() {
    let served = Served::start(&[]);
    let mut many_headers = b"GET /v1/status HTTP/1.1\r\n".to_vec();
    (0..10_000).for_each(|number| many_headers.extend_from_slice(format!("h{number}: x\r\n").as_bytes()));
    many_headers.extend_from_slice(b"\r\n");
    let long_header = [
        b"GET / HTTP/1.1\r\na: ".to_vec(),
        vec![b'x'; 1 << 20],
        b"\r\n\r\n".to_vec(),
    ]
    .concat();
    let long_line = [
        b"GET /".to_vec(),
        vec![b'x'; 1 << 20],
        b" HTTP/1.1\r\n\r\n".to_vec(),
    ]
    .concat();
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap())
        .collect();
    let both = b"POST /v1/pairs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    let negative = b"POST /v1/pairs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n";
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise),
        ("zeros", vec![0; 70_000]),
        ("line breaks", vec![b'\n'; 100_000]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(100)),
        ("many headers", many_headers),
        ("a long header", long_header),
        ("a long line", long_line),
        ("two lengths", both.to_vec()),
        ("a negative length", negative.to_vec()),
        ("another protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in rows {
        let (code, _) = parts(&served.raw(&bytes));
        assert!(code == 0 || (400..600).contains(&code), "{what}: {code}");
        served.run(&["status"]).expect(0);
    }
    // Up to 1 GiB of a line without an end: it is cut off long before.
    let mut endless = served.connect();
    let piece = vec![b'x'; 1 << 20];
    let taken = (0..1024)
        .take_while(|_| endless.write_all(&piece).is_ok())
        .count();
    assert!(taken < 64, "{taken} MiB of one line were taken");
    served.run(&["status"]).expect(0);
    // One that hangs up in the middle, at every byte of a good request.
    let whole = post(br#"{"machine":"a","disk":"b","scsi_id":"naa.6000c29a71e02b4c9d118e55037fab09"}"#);
    for length in 0..whole.len() {
        // Told that there is no place, it may find the other end closed already: that is a hang-up too.
        let _ = served.connect().write_all(&whole[..length]);
    }
    served.wait_for("the next client", || served.run(&["status"]).code == Some(0));
    assert_eq!(
        served.json(&["pair", "list"])["pairs"].as_array().unwrap().len(),
        0
    );
    served.stop();
}

#[test]
fn half_a_request_is_given_up() {
    let served = Served::start(&[]);
    let mut head = served.connect();
    head.write_all(b"GET /v1/status HT").unwrap();
    let mut body = served.connect();
    body.write_all(b"POST /v1/pairs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    let mut silent = served.connect();
    served.run(&["status"]).expect(0);
    // Each is ended by our own limit. Three times that, and still less than the 30 s the HTTP library would take by
    // itself, so that it shows when the limit is gone.
    for stream in [&head, &body, &silent] {
        stream.set_read_timeout(Some(REQUEST_TIME_MAX * 3)).unwrap();
    }
    let (code, document) = parts(&read_to_end(&mut body));
    assert_eq!((code, document["code"].as_str()), (408, Some("too-slow")));
    for stream in [&mut head, &mut silent] {
        let (code, _) = parts(&read_to_end(stream));
        assert!(code == 0 || code == 408, "{code}");
    }
    served.stop();
}

#[test]
fn too_many_clients_are_told_so_and_others_are_served_afterwards() {
    let served = Served::start(&[]);
    let places = CLIENTS_MAX + CLIENTS_ROOT_MAX;
    // Without root the places kept for it are out of reach, and the first of these are refused already; the last is
    // refused either way.
    let idle: Vec<UnixStream> = (0..places).map(|_| served.connect()).collect();
    let answer = read_to_end(&mut served.connect());
    let (code, document) = parts(&answer);
    assert_eq!((code, document["code"].as_str()), (503, Some("busy")), "{answer}");
    drop(idle);
    served.wait_for("a place", || served.run(&["status"]).code == Some(0));
    served.stop();
}

#[test]
fn readers_of_events_leave_places_for_others() {
    let served = Served::start(&[]);
    let mut readers: Vec<UnixStream> = (0..EVENT_READERS_MAX)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(&get("/v1/events")).unwrap();
            // The head of the answer says that it has its place.
            let mut first = [0; 15];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 200 OK");
            stream
        })
        .collect();
    let (code, document) = parts(&served.raw(&get("/v1/events")));
    assert_eq!((code, document["code"].as_str()), (503, Some("busy")));
    served.run(&["status"]).expect(0);
    readers.pop();
    served.wait_for("the place to be given back", || {
        // Something has to be written for the server to notice that a reader is gone.
        served.raise("x", &format!("{:?}", Instant::now()));
        let mut stream = served.connect();
        stream.write_all(&get("/v1/events")).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        first.ends_with(b"200")
    });
    served.stop();
}

#[test]
fn a_reader_that_is_too_slow_is_told_what_it_missed() {
    let served = Served::start(&[b""]);
    let mut reader = served.connect();
    reader.write_all(&get("/v1/events")).unwrap();
    let mut first = [0; 15];
    reader.read_exact(&mut first).unwrap();
    // Far more than the socket and the queue of events hold.
    let padding = "x".repeat(2000);
    (0..6000).for_each(|number| served.raise("x", &format!("{number} {padding}")));
    let mut seen = String::new();
    let mut buffer = [0; 64 * 1024];
    while !seen.contains("\"event\":\"missed\"") {
        let read = reader.read(&mut buffer).unwrap();
        assert!(read > 0, "the stream ended without a word on what was missed");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    served.stop();
}

#[test]
fn a_reader_that_does_not_read_is_dropped() {
    let served = Served::start(&[b""]);
    let mut reader = served.connect();
    reader.write_all(&get("/v1/events")).unwrap();
    // The head of the answer says that it has subscribed; nothing more is read.
    let mut first = [0; 15];
    reader.read_exact(&mut first).unwrap();
    let padding = "x".repeat(2000);
    (0..3000).for_each(|number| served.raise("x", &format!("{number} {padding}")));
    assert!(WRITE_TIME_MAX < PATIENCE / 2);
    // Nothing is read, and yet the other end goes away: writing to it fails then.
    let begun = Instant::now();
    let error = loop {
        assert!(
            begun.elapsed() < PATIENCE,
            "a reader that does not read is kept for ever"
        );
        match reader.write_all(b" ") {
            Err(error) => break error.kind(),
            Ok(()) => std::thread::sleep(std::time::Duration::from_millis(250)),
        }
    };
    assert!(
        matches!(error, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
        "{error}"
    );
    served.run(&["pair", "add", "db01/0", &id(1)]).expect(0);
    served.stop();
}
