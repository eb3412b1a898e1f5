//! Whatever root asks for that changes something is in the audit log: by whom, with what, and what came of it, and no secret.

mod support;

use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;
use support::{Served, id};

fn entries(served: &Served) -> Vec<Value> {
    served.json(&["audit"])["entries"]
        .as_array()
        .expect("entries are a list")
        .clone()
}

/// The only entry whose `what` is this.
#[track_caller]
fn result_of(served: &Served, what: &str) -> String {
    let entries = entries(served);
    let mut found = entries.iter().filter(|entry| entry["what"] == what);
    let (Some(entry), None) = (found.next(), found.next()) else {
        panic!("not once in the log: {what}\n{entries:#?}");
    };
    let who = entry["who"].as_str().expect("it is text");
    assert!(who.starts_with("user ") && who.contains("(process "), "{who}");
    entry["result"].as_str().expect("it is text").to_owned()
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn every_change_is_there_with_what_was_asked_for_refused_ones_too() {
    let served = Served::start(&[b"", &[&[0; 510][..], &[0x55, 0xaa], b"content"].concat()]);
    served.run(&["pair", "add", "db01/0", &id(1)]).expect(0);
    served.run(&["pair", "add", "db01/1", &id(2)]).expect(5);
    served
        .run(&["pair", "add", "db01/1", &id(2), "--overwrite", &id(2)])
        .expect(0);
    served.run(&["policy", "db01", "--all-for", "5h"]).expect(0);
    served.run(&["failover", "db01", "--to", "latest"]).expect(5);
    served.run(&["pair", "remove", "db01/1"]).expect(0);

    let add = |disk: &str, number: u8, overwrite: &str| {
        let scsi_id = id(number);
        format!(
            r#"POST /v1/pairs {{"disk":"{disk}","machine":"db01","overwrite":{overwrite},"scsi_id":"{scsi_id}"}}"#
        )
    };
    assert_eq!(result_of(&served, &add("0", 1, "null")), "done (201)");
    let refused = result_of(&served, &add("1", 2, "null"));
    assert!(refused.starts_with("refused (409 "), "{refused}");
    assert_eq!(
        result_of(&served, &add("1", 2, &format!("\"{}\"", id(2)))),
        "done (201)"
    );
    assert_eq!(result_of(&served, "DELETE /v1/pairs/db01/1"), "done (200)");
    let refused = result_of(&served, r#"POST /v1/machines/db01/failover {"to":"latest"}"#);
    assert!(refused.starts_with("refused (409 "), "{refused}");
    let all = entries(&served);
    let policy = all
        .iter()
        .find(|entry| {
            entry["what"]
                .as_str()
                .is_some_and(|what| what.contains("/settings"))
        })
        .unwrap_or_else(|| panic!("the policy was changed: {all:#?}"));
    assert!(
        policy["what"].as_str().unwrap().contains(r#""all_for":18000"#),
        "{policy}"
    );
    // Reading leaves no trace, so six requests are six entries.
    assert_eq!(all.len(), 6, "{all:#?}");
    let said = served.run(&["audit"]).expect(0);
    assert!(said.stdout.contains("failover"), "{said:?}");
    served.stop();
}

#[test]
fn no_secret_and_nothing_that_draws_gets_into_the_log() {
    let served = Served::start(&[b""]);
    let secret = "correct-horse-battery-staple-4711";
    for (path, body) in [
        (
            "/v1/identity/passphrase",
            format!(r#"{{"passphrase":"{secret}"}}"#),
        ),
        (
            "/v1/identity/passphrase",
            format!(r#"{{"passphrse":"{secret}"}}"#),
        ),
        (
            "/v1/identity/passphrase",
            format!(r#"{{"passphrase":["{secret}"]}}"#),
        ),
        ("/v1/identity/passphrase", format!("\"{secret}\"")),
        ("/v1/identity/passphrase", secret.to_owned()),
        ("/v1/identity/export", format!(r#"{{"passphrase":"{secret}"}}"#)),
        (
            "/v1/pairs",
            format!(r#"{{"machine":{{"passphrase":"{secret}"}}}}"#),
        ),
        ("/v1/nothing", format!(r#"{{"password":"{secret}"}}"#)),
    ] {
        served.raw(&post(path, body.as_bytes()));
    }
    let long = format!(
        r#"{{"machine":"{}\u001b[2J\n","disk":"x","scsi_id":"y"}}"#,
        "a".repeat(30_000)
    );
    served.raw(&post("/v1/pairs", long.as_bytes()));
    served.raw(&post(&format!("/v1/{}", "x".repeat(9000)), b"{}"));
    let all = entries(&served);
    assert_eq!(all.len(), 10, "{all:#?}");
    for entry in &all {
        let text = entry.to_string();
        assert!(!text.contains(secret), "{text}");
        assert!(text.len() < 4000, "{} bytes: {text}", text.len());
        for field in ["who", "what", "result"] {
            let text = entry[field].as_str().unwrap();
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        assert!(entry["result"].as_str().unwrap().starts_with("refused"), "{text}");
    }
    served.stop();
}

/// A client that hangs up gets no answer. Either it was too early and nothing is done, or what it asked for is done and in the
/// log: never one without the other, wherever the hang-up falls.
#[test]
fn whoever_hangs_up_is_in_the_log_all_the_same() {
    const COUNT: u8 = 40;
    let served = Served::start(&[&b""[..]; COUNT as usize]);
    for number in 1..=COUNT {
        let body = format!(
            r#"{{"machine":"db01","disk":"{number}","scsi_id":"{}"}}"#,
            id(number)
        );
        let mut client = served.connect();
        client.write_all(&post("/v1/pairs", body.as_bytes())).unwrap();
        std::thread::sleep(Duration::from_micros(150 * u64::from(number)));
    }
    let pairs = || served.json(&["pair", "list"])["pairs"].as_array().unwrap().len();
    served.wait_for("both to be the same, and stay so", || {
        let done = || {
            entries(&served)
                .iter()
                .filter(|entry| entry["result"] == "done (201)")
                .count()
        };
        let (before, made, after) = (done(), pairs(), done());
        std::thread::sleep(Duration::from_millis(300));
        before == made && made == after && after == done() && made == pairs()
    });
    assert!(pairs() > 0, "some of them were in time");
    served.stop();
}
