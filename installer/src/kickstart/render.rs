// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes answers as a kickstart file that reads as the same answers.

use super::words::quote;
use crate::answers::{Answers, Card, End, Ipv4, Ipv6, Network, Role, RootLogin, When};

/// Text of a kickstart file.
#[must_use]
pub fn render(answers: &Answers) -> String {
    let mut lines = vec![
        "# Answers for the installation of the master target.".to_owned(),
        "lang en_US.UTF-8".to_owned(),
        "keyboard us".to_owned(),
        format!("timezone {} --utc", answers.time.zone),
    ];
    if !answers.time.use_servers {
        lines.push("timesource --ntp-disable".to_owned());
    }
    lines.extend(
        answers
            .time
            .servers
            .iter()
            .map(|server| format!("timesource --ntp-server={server}")),
    );
    lines.push(match &answers.root {
        RootLogin::Locked => "rootpw --lock".to_owned(),
        RootLogin::Hash(hash) => format!("rootpw --iscrypted {}", quote(hash)),
    });
    lines.extend(
        answers
            .ssh_keys
            .iter()
            .map(|key| format!("sshkey --username=root {}", quote(key))),
    );
    if let Some(name) = &answers.hostname {
        lines.push(format!("network --hostname={name}"));
    }
    lines.extend(answers.networks.iter().map(network));
    lines.push(firewall(answers));
    let services: String = [
        ("enabled", &answers.services_enabled),
        ("disabled", &answers.services_disabled),
    ]
    .iter()
    .filter(|(_, units)| !units.is_empty())
    .map(|(name, units)| format!(" --{name}={}", units.join(",")))
    .collect();
    if !services.is_empty() {
        lines.push(format!("services{services}"));
    }
    storage(answers, &mut lines);
    lines.push(
        match answers.end {
            End::Reboot => "reboot",
            End::PowerOff => "poweroff",
            End::Halt => "halt",
        }
        .to_owned(),
    );
    let mut text = lines.join("\n") + "\n";
    text += &settings(answers);
    for script in &answers.scripts {
        let head = match script.when {
            When::Pre => "%pre",
            When::Post => "%post",
            When::PostOutside => "%post --nochroot",
        };
        let ends = if script.error_ends { " --erroronfail" } else { "" };
        text += &format!(
            "\n{head} --interpreter={}{ends}\n{}%end\n",
            script.interpreter, script.body
        );
    }
    text
}

fn network(network: &Network) -> String {
    let mut line = "network".to_owned();
    let mut add = |text: String| {
        line.push(' ');
        line += &text;
    };
    match &network.card {
        Card::Any => add("--device=link".to_owned()),
        Card::Name(name) | Card::Mac(name) => add(format!("--device={name}")),
    }
    if let Some(id) = network.vlan {
        add(format!("--vlanid={id}"));
    }
    match network.ipv4 {
        Ipv4::Off => add("--noipv4".to_owned()),
        Ipv4::Dhcp => add("--bootproto=dhcp".to_owned()),
        Ipv4::Static {
            address,
            prefix,
            gateway,
        } => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            add(format!(
                "--bootproto=static --ip={address} --netmask={}",
                std::net::Ipv4Addr::from(mask)
            ));
            if let Some(gateway) = gateway {
                add(format!("--gateway={gateway}"));
            }
        }
    }
    match network.ipv6 {
        Ipv6::Off => add("--noipv6".to_owned()),
        Ipv6::Auto => add("--ipv6=auto".to_owned()),
        Ipv6::Dhcp => add("--ipv6=dhcp".to_owned()),
        Ipv6::Static {
            address,
            prefix,
            gateway,
        } => {
            add(format!("--ipv6={address}/{prefix}"));
            if let Some(gateway) = gateway {
                add(format!("--ipv6gateway={gateway}"));
            }
        }
    }
    if !network.name_servers.is_empty() {
        let servers: Vec<String> = network.name_servers.iter().map(ToString::to_string).collect();
        add(format!("--nameserver={}", servers.join(",")));
    }
    if let Some(mtu) = network.mtu {
        add(format!("--mtu={mtu}"));
    }
    if !network.default_route {
        add("--nodefroute".to_owned());
    }
    line
}

fn firewall(answers: &Answers) -> String {
    if !answers.firewall.enabled {
        return "firewall --disabled".to_owned();
    }
    let mut line = "firewall --enabled".to_owned();
    if answers.firewall.ssh {
        line += " --ssh";
    }
    let ports: Vec<String> = answers
        .firewall
        .ports
        .iter()
        .map(|port| format!("{}:{}", port.number, if port.udp { "udp" } else { "tcp" }))
        .collect();
    if !ports.is_empty() {
        line += &format!(" --port={}", ports.join(","));
    }
    line
}

fn storage(answers: &Answers, lines: &mut Vec<String>) {
    let storage = &answers.storage;
    if let Some(disk) = &storage.disk {
        lines.push(format!("ignoredisk --only-use={}", quote(disk)));
    }
    if storage.clear {
        lines.push("zerombr".to_owned());
        lines.push("clearpart --all --initlabel".to_owned());
    }
    if storage.parts.is_empty() {
        lines.push("autopart --type=plain".to_owned());
    }
    for part in &storage.parts {
        let mut line = format!("part {}", part.role.name());
        line += match part.role {
            Role::BiosBoot => " --fstype=biosboot",
            Role::Esp => " --fstype=efi",
            Role::Swap => " --fstype=swap",
            Role::Mount(_) => " --fstype=ext4",
        };
        match part.size_mib {
            Some(mib) => line += &format!(" --size={mib}"),
            None => line += " --recommended",
        }
        if part.grow {
            line += " --grow";
        }
        if let Some(mib) = part.max_mib {
            line += &format!(" --maxsize={mib}");
        }
        if let Some(options) = &part.options {
            line += &format!(" --fsoptions={}", quote(options));
        }
        lines.push(line);
    }
    let mut boot = "bootloader --location=mbr".to_owned();
    if !answers.kernel_arguments.is_empty() {
        boot += &format!(" --append=\"{}\"", answers.kernel_arguments);
    }
    if let Some(seconds) = answers.menu_seconds {
        boot += &format!(" --timeout={seconds}");
    }
    lines.push(boot);
}

fn settings(answers: &Answers) -> String {
    let settings = &answers.settings;
    if settings.retention_disk.is_none() && settings.agent.is_none() {
        return String::new();
    }
    let mut text = "\n%addon master_target\n".to_owned();
    if let Some(disk) = &settings.retention_disk {
        text += &format!("retention_disk = \"{disk}\"\n");
    }
    if let Some(agent) = &settings.agent {
        text += agent;
        if !agent.ends_with('\n') {
            text.push('\n');
        }
    }
    text + "%end\n"
}
