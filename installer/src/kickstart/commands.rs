// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands: one line each.

use std::collections::BTreeMap;

use super::{Checked, Fault, network, options, sections, storage, words};
use crate::answers::{Answers, End, Port, RootLogin};

/// Commands that may be given once.
const ONCE: &[&str] = &[
    "lang",
    "keyboard",
    "timezone",
    "rootpw",
    "firewall",
    "selinux",
    "zerombr",
    "clearpart",
    "ignoredisk",
    "autopart",
    "bootloader",
    "services",
    "end",
];
/// Known commands, for the nearest one to a misspelt one.
const KNOWN: &[&str] = &[
    "lang",
    "keyboard",
    "timezone",
    "timesource",
    "rootpw",
    "sshkey",
    "network",
    "firewall",
    "services",
    "selinux",
    "zerombr",
    "clearpart",
    "ignoredisk",
    "autopart",
    "part",
    "bootloader",
    "reboot",
    "poweroff",
    "halt",
    "shutdown",
    "text",
    "cmdline",
    "cdrom",
    "skipx",
    "firstboot",
    "eula",
];

/// What was read so far.
#[derive(Debug, Default)]
pub struct Reader {
    answers: Answers,
    faults: Vec<Fault>,
    seen: BTreeMap<&'static str, usize>,
    autopart: bool,
}

impl Reader {
    /// Records a fault.
    pub fn fault(&mut self, line: usize, text: String) {
        self.faults.push(Fault { line, text });
    }

    /// Reads a line that is a command.
    pub fn command(&mut self, number: usize, line: &str) {
        let outcome = words::split(line).and_then(|words| match words.split_first() {
            Some((name, rest)) => self
                .once(name, number)
                .and_then(|()| self.dispatch(name, rest))
                .map_err(|text| format!("{name}: {text}")),
            None => Ok(()),
        });
        if let Err(text) = outcome {
            self.fault(number, text);
        }
    }

    /// Reads a section.
    pub fn section(&mut self, number: usize, head: &str, body: &str) {
        let outcome = words::split(head).and_then(|words| match words.split_first() {
            Some((name, rest)) => sections::read(name, rest, body, number, &mut self.answers, &mut self.seen)
                .map_err(|(line, text)| (line, format!("{name}: {text}")))
                .or_else(|(line, text)| {
                    self.fault(line, text);
                    Ok(())
                }),
            None => Ok(()),
        });
        if let Err(text) = outcome {
            self.fault(number, text);
        }
    }

    /// All of it.
    pub fn finish(mut self) -> Result<Answers, Vec<Fault>> {
        if self.faults.is_empty() {
            let last = self.seen.values().copied().max().unwrap_or(1);
            for text in self.answers.contradictions() {
                self.fault(last, text);
            }
        }
        if self.faults.is_empty() {
            Ok(self.answers)
        } else {
            self.faults.sort();
            Err(self.faults)
        }
    }

    fn once(&mut self, name: &str, number: usize) -> Checked<()> {
        let key = match name {
            "reboot" | "poweroff" | "halt" | "shutdown" => "end",
            other => other,
        };
        let Some(known) = ONCE.iter().copied().find(|known| *known == key) else {
            self.seen.insert("", number);
            return Ok(());
        };
        match self.seen.insert(known, number) {
            None => Ok(()),
            Some(first) if known == "end" => Err(format!("line {first} says already how it ends")),
            Some(first) => Err(format!("is given already at line {first}")),
        }
    }

    fn dispatch(&mut self, name: &str, words: &[String]) -> Checked<()> {
        let answers = &mut self.answers;
        match name {
            "lang" => lang(words),
            "keyboard" => keyboard(words),
            "timezone" => timezone(words, answers),
            "timesource" => timesource(words, answers),
            "rootpw" => rootpw(words, answers),
            "sshkey" => sshkey(words, answers),
            "network" => network::network(words, answers),
            "firewall" => firewall(words, answers),
            "services" => services(words, answers),
            "selinux" => selinux(words),
            "zerombr" | "text" | "cmdline" | "cdrom" | "skipx" => {
                options::read(words, &[], &[])?.nothing_alone()
            }
            "firstboot" => {
                let options = options::read(words, &["disable", "disabled"], &[])?;
                options.nothing_alone()?;
                if words.is_empty() {
                    return Err("only --disable: the appliance has its own first start".to_owned());
                }
                Ok(())
            }
            "eula" => options::read(words, &["agreed"], &[])?.nothing_alone(),
            "clearpart" => storage::clearpart(words, answers),
            "ignoredisk" => storage::ignoredisk(words, answers),
            "autopart" => {
                self.autopart = true;
                storage::autopart(words, answers)
            }
            "part" | "partition" if self.autopart => Err("autopart and part exclude each other".to_owned()),
            "part" | "partition" => storage::part(words, answers),
            "bootloader" => storage::bootloader(words, answers),
            "reboot" | "poweroff" | "shutdown" | "halt" => {
                options::read(words, &[], &[])?.nothing_alone()?;
                answers.end = match name {
                    "reboot" => End::Reboot,
                    "halt" => End::Halt,
                    _ => End::PowerOff,
                };
                Ok(())
            }
            "raid" | "volgroup" | "logvol" | "btrfs" | "mount" => {
                Err("no RAID, LVM or btrfs: they would be found on disks of guests too; use part".to_owned())
            }
            "url" | "repo" | "liveimg" | "nfs" | "harddrive" | "ostreesetup" | "module" => {
                Err("the system comes from the medium and from nowhere else".to_owned())
            }
            "user" | "group" => Err("the appliance has no accounts but root".to_owned()),
            "install" | "auth" | "authconfig" | "authselect" | "xconfig" | "upgrade" => {
                Err("is not supported; leave the line out".to_owned())
            }
            other => {
                let near = KNOWN
                    .iter()
                    .map(|known| (strsim::damerau_levenshtein(known, other), known))
                    .min()
                    .filter(|(distance, _)| *distance <= 2);
                Err(match near {
                    Some((_, known)) => format!("no such command; did you mean {known}?"),
                    None => "no such command, or one that is not supported".to_owned(),
                })
            }
        }
    }
}

fn lang(words: &[String]) -> Checked<()> {
    let options = options::read(words, &[], &[])?;
    let name = options.one_alone("the language")?;
    let language = name.split('.').next().unwrap_or(name);
    if matches!(language, "C" | "POSIX") || language.starts_with("en_") {
        Ok(())
    } else {
        Err(format!(
            "{name}: the appliance speaks English only, as in en_US.UTF-8"
        ))
    }
}

fn keyboard(words: &[String]) -> Checked<()> {
    let options = options::read(words, &[], &["vckeymap", "xlayouts"])?;
    let names: Vec<&str> = options
        .alone
        .iter()
        .map(String::as_str)
        .chain(
            ["vckeymap", "xlayouts"]
                .iter()
                .filter_map(|name| options.value(name)),
        )
        .collect();
    match names.as_slice() {
        [] => Err("the layout is missing".to_owned()),
        names => match names.iter().find(|name| **name != "us") {
            Some(name) => Err(format!("{name}: the appliance's console has the layout us only")),
            None => Ok(()),
        },
    }
}

fn host(name: &str) -> Checked<String> {
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Ok(name.to_owned());
    }
    network::check_host_name(name).map(|()| name.to_owned())
}

fn timezone(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &["utc", "isUtc", "nontp"], &["ntpservers"])?;
    let zone = options.one_alone("the time zone")?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+/".contains(&byte);
    let plain =
        zone.bytes().all(good) && !zone.starts_with('/') && !zone.ends_with('/') && !zone.contains("//");
    if !plain {
        return Err(format!("{zone}: expected a name such as Europe/Berlin"));
    }
    // Where this machine has the database, a name that is not in it is found now and not half-way.
    let base = std::path::Path::new("/usr/share/zoneinfo");
    if base.join("UTC").is_file() && !base.join(zone).is_file() {
        return Err(format!("{zone}: there is no such time zone"));
    }
    zone.clone_into(&mut answers.time.zone);
    for server in options.list("ntpservers") {
        answers.time.servers.push(host(&server)?);
    }
    if options.has("nontp") {
        no_servers(answers)?;
    }
    Ok(())
}

fn no_servers(answers: &mut Answers) -> Checked<()> {
    answers.time.use_servers = false;
    if answers.time.servers.is_empty() {
        Ok(())
    } else {
        Err("time servers are given and switched off".to_owned())
    }
}

fn timesource(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &["ntp-disable"], &["ntp-server"])?;
    options.nothing_alone()?;
    if options.has("ntp-disable") {
        return no_servers(answers);
    }
    let server = options
        .value("ntp-server")
        .ok_or("--ntp-server or --ntp-disable is needed")?;
    if !answers.time.use_servers {
        return Err("time servers are given and switched off".to_owned());
    }
    answers.time.servers.push(host(server)?);
    Ok(())
}

fn rootpw(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &["iscrypted", "lock"], &[])?;
    if options.has("lock") {
        options.nothing_alone()?;
        answers.root = RootLogin::Locked;
        return Ok(());
    }
    if !options.has("iscrypted") {
        return Err(
            "a password in clear text is not accepted; give --iscrypted and what \"openssl passwd -6\" prints".to_owned(),
        );
    }
    let hash = options.one_alone("the hash")?;
    check_hash(hash)?;
    answers.root = RootLogin::Hash(hash.to_owned());
    Ok(())
}

/// Checks the hash of a password, as it stands in `/etc/shadow`.
///
/// # Errors
/// It is none, or of a kind that is no protection any more. The hash itself is not repeated.
pub fn check_hash(hash: &str) -> Checked<()> {
    let kinds = ["$6$", "$5$", "$y$", "$gy$", "$7$", "$2b$", "$2y$"];
    let kind = kinds.iter().any(|kind| hash.starts_with(kind));
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"./$=,".contains(&byte);
    let parts = hash.split('$').count();
    let last = hash.rsplit('$').next().unwrap_or_default();
    // The shortest, of SHA-256, has 43 letters. What is cut short is a password that nobody has.
    let whole = last.len() >= 43
        && last
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"./".contains(&byte));
    if kind && parts >= 4 && whole && hash.bytes().all(good) && hash.len() < 512 {
        Ok(())
    } else {
        Err("this is no hash of a password as crypt(5) has it; make one with \"openssl passwd -6\", as in $6$salt$hash".to_owned())
    }
}

fn sshkey(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &[], &["username"])?;
    match options.value("username") {
        Some("root") => {}
        Some(name) => {
            return Err(format!(
                "--username={name}: the appliance has no account but root"
            ));
        }
        None => return Err("--username=root is missing".to_owned()),
    }
    let key = options.one_alone("the key, in quotation marks,")?;
    check_key(key)?;
    answers.ssh_keys.push(key.to_owned());
    Ok(())
}

/// Checks a public key of SSH, without options before it.
///
/// # Errors
/// It is none.
pub fn check_key(key: &str) -> Checked<()> {
    let mut parts = key.split(' ');
    let kind = parts.next().unwrap_or_default();
    let known = [
        "ssh-ed25519",
        "ssh-rsa",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let body = parts.next().unwrap_or_default();
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let is_known = known.contains(&kind) || kind.starts_with("ecdsa-sha2-nistp");
    if is_known && body.starts_with("AAAA") && body.bytes().all(good) && !key.chars().any(char::is_control) {
        Ok(())
    } else {
        Err("this is no public key such as \"ssh-ed25519 AAAA... name\"".to_owned())
    }
}

fn firewall(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(
        words,
        &["enabled", "enable", "disabled", "disable", "ssh"],
        &["port", "service"],
    )?;
    options.nothing_alone()?;
    let off = options.has("disabled") || options.has("disable");
    if off && (options.has("enabled") || options.has("enable")) {
        return Err("--enabled and --disabled contradict each other".to_owned());
    }
    let firewall = &mut answers.firewall;
    firewall.enabled = !off;
    firewall.ssh = options.has("ssh");
    for service in options.list("service") {
        match service.as_str() {
            "ssh" => firewall.ssh = true,
            other => return Err(format!("--service={other}: only ssh; give others with --port")),
        }
    }
    for text in options.list("port") {
        let wrong = || format!("--port={text}: expected such as 1234:tcp");
        let (number, protocol) = text.split_once(':').unwrap_or((&text, "tcp"));
        let number: u16 = number.parse().map_err(|_| wrong())?;
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return Err(wrong()),
        };
        if number == 0 {
            return Err(wrong());
        }
        firewall.ports.insert(Port { number, udp });
    }
    if off && (firewall.ssh || !firewall.ports.is_empty()) {
        return Err("what may come in is given, and --disabled".to_owned());
    }
    Ok(())
}

fn services(words: &[String], answers: &mut Answers) -> Checked<()> {
    let options = options::read(words, &[], &["enabled", "disabled"])?;
    options.nothing_alone()?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@:".contains(&byte);
    for (name, units) in [
        ("enabled", &mut answers.services_enabled),
        ("disabled", &mut answers.services_disabled),
    ] {
        for unit in options.list(name) {
            if !unit.bytes().all(good) || unit.starts_with('-') {
                return Err(format!("--{name}={unit}: no name of a service"));
            }
            units.push(unit);
        }
    }
    if answers.services_enabled.is_empty() && answers.services_disabled.is_empty() {
        return Err("--enabled or --disabled is needed".to_owned());
    }
    Ok(())
}

fn selinux(words: &[String]) -> Checked<()> {
    let options = options::read(words, &["disabled", "enforcing", "permissive"], &[])?;
    options.nothing_alone()?;
    if options.has("disabled") && words.len() == 1 {
        Ok(())
    } else {
        Err("only --disabled: the system has no SELinux".to_owned())
    }
}
