//! The target service in a guest, and sources beside it that send over loopback.

use std::time::Duration;

use serde_json::Value;

use super::{Guest, Said};

/// Longest that the service may take to say what it saw of a hot-plug: what it promises is seconds, and emulation on a
/// busy machine makes them long ones.
pub const SOON: Duration = Duration::from_secs(90);

/// Configuration and start of the service, and once the registration of the sources beside it; its words go to `/tmp/target.log`, its events to `/tmp/events`.
const START: &str = "
mkdir -p /etc/master-target /run/master-target
printf '[agent]\\nsocket_group = \"root\"\\n' >/etc/master-target/agent.toml
rm -f /tmp/target.code
setsid sh -c 'mt-agent target >/tmp/target.log 2>&1 &
    echo $! >/tmp/target.pid
    wait $!
    echo $? >/tmp/target.code' &
for try in $(seq 600); do
    mt-agent status --json >/tmp/status 2>/tmp/status.err && break
    [ -e /tmp/target.code ] && break
    sleep 0.2
done
cat /tmp/status.err >&2
[ -s /tmp/status ] || { cat /tmp/target.log >&2; exit 1; }
if [ ! -e /var/lib/master-target/source/appliance ]; then
    mt-agent identity show --json | sed -n 's/.*\"passphrase\": \"\\(.*\\)\".*/\\1/p' >/tmp/passphrase
    mt-agent register --target 127.0.0.1 --name db01 --passphrase-file /tmp/passphrase >&2 || exit 1
    mt-agent machines approve db01 >&2 || exit 1
fi
setsid mt-agent events --json >/tmp/events 2>&1 &
";

/// What a guest can do once the target service runs in it.
impl Guest {
    /// Starts the service and waits until it answers.
    #[track_caller]
    pub fn start_target(&mut self) {
        self.run(START).expect_done();
    }

    /// Ends the service in good order, and fails when it does not end well.
    #[track_caller]
    pub fn stop_target(&mut self) {
        self.done("kill -TERM $(cat /tmp/target.pid)");
        self.wait_until("the end of the target", SOON, "[ -s /tmp/target.code ]");
        let log = self.target_log();
        assert_eq!(self.done("cat /tmp/target.code"), "0", "it ended well\n{log}");
        assert!(!log.contains("panicked"), "{log}");
    }

    /// The status document.
    #[track_caller]
    pub fn status(&mut self) -> Value {
        self.run("mt-agent status --json").expect_done().json()
    }

    /// The service's log so far.
    pub fn target_log(&mut self) -> String {
        self.run("cat /tmp/target.log").stdout
    }

    /// Adds a pair and fails when that fails.
    #[track_caller]
    pub fn pair(&mut self, pair: &str, id: &str) {
        self.done(&format!("mt-agent pair add {pair} {id}"));
    }

    /// Sends a block device of the guest to a pair and waits for the end.
    #[track_caller]
    pub fn send(&mut self, pair: &str, path: &str, more: &str) -> Said {
        self.run(&format!(
            "mt-agent source send --json --pair {pair} {more} {path}"
        ))
    }

    /// Starts to send in the background, under a name for [`Guest::sent`].
    #[track_caller]
    pub fn start_send(&mut self, name: &str, pair: &str, path: &str, more: &str) {
        self.done(&format!(
            "rm -f /tmp/{name}.*
            (
                mt-agent source send --json --pair {pair} {more} {path} >/tmp/{name}.out 2>/tmp/{name}.err
                echo $? >/tmp/{name}.code
            ) </dev/null >/dev/null 2>&1 &"
        ));
    }

    /// Waits for the end of a send that was started.
    #[track_caller]
    pub fn sent(&mut self, name: &str, patience: Duration) -> Said {
        self.wait_until(
            "the end of the send",
            patience,
            &format!("[ -s /tmp/{name}.code ]"),
        );
        self.run(&format!(
            "cat /tmp/{name}.out; cat /tmp/{name}.err >&2; exit $(cat /tmp/{name}.code)"
        ))
    }

    /// Waits until status is as wanted; answers it.
    #[track_caller]
    pub fn status_when(&mut self, what: &str, patience: Duration, is_so: impl Fn(&Value) -> bool) -> Value {
        let begin = std::time::Instant::now();
        loop {
            let status = self.status();
            if is_so(&status) {
                println!("{what}: after {:.1} s", begin.elapsed().as_secs_f32());
                return status;
            }
            if begin.elapsed() > patience {
                let log = self.target_log();
                self.give_up(&format!(
                    "waited in vain for {what}: {status:#}\n--- log of the target\n{log}"
                ));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The alarm of a kind about a subject, if it is raised.
pub fn alarm<'a>(status: &'a Value, id: &str, subject: &str) -> Option<&'a Value> {
    let alarms = status["alarms"].as_array().expect("alarms are a list");
    alarms
        .iter()
        .find(|alarm| alarm["id"] == id && alarm["subject"] == subject)
}

/// What status says of a pair.
///
/// # Panics
/// When there is no such pair.
#[track_caller]
pub fn pair<'a>(status: &'a Value, name: &str) -> &'a Value {
    let pairs = status["pairs"].as_array().expect("pairs are a list");
    pairs
        .iter()
        .find(|pair| pair["pair"] == name)
        .unwrap_or_else(|| panic!("there is no pair {name} in {status:#}"))
}

impl Said {
    /// The last JSON line of this event on standard output.
    #[track_caller]
    pub fn event(&self, name: &str) -> Value {
        self.stdout
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["event"] == name)
            .unwrap_or_else(|| panic!("there is no {name} line\n{self}"))
    }
}
