//! Groups: machines that share points, and what is done with all of them.
//!
//! Machines share a point when the epochs that made it have one name. A point of a group exists only where every machine of it
//! offers it, once, and can reach it; a machine has it with all of its disks or not at all. Before anything is done with a
//! group, every machine of it is looked at: where one cannot, none is touched.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mt_retention::Consistency;
use serde::Serialize;

use super::output::time_text;
use super::screen::clean;
use crate::error::{CliError, ExitCode};
use crate::failover::table::{State, Verb};
use crate::machines::points::Wanted;
use crate::status::client::{Client, escape};
use crate::status::machines::{MachineDoc, MachinesDoc, PointDoc, PointsDoc};

/// What a name stands for.
#[derive(Debug)]
pub enum Members {
    /// One machine, or a name that the agent is to judge.
    Machine(String),
    /// A group, with its machines.
    Group(Vec<MachineDoc>),
}

/// A point that all machines of a group share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupPoint {
    /// Its name.
    pub name: String,
    /// When the last of the machines was at it, by its clock.
    pub time: Timestamp,
    /// The weakest consistency among the machines: crash, file-system or application.
    pub consistency: String,
    /// Its number on each machine.
    pub points: BTreeMap<String, u64>,
}

/// The machines that are meant by a name. A machine goes before a group of the same name.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn members(client: &Client, name: &str) -> Result<Members, CliError> {
    let document: MachinesDoc = client.decode(client.get("/v1/machines").await?)?;
    if document.machines.iter().any(|machine| machine.machine == name) {
        return Ok(Members::Machine(name.to_owned()));
    }
    let mut members = document.machines;
    members.retain(|machine| machine.group.as_deref() == Some(name));
    if members.is_empty() {
        return Ok(Members::Machine(name.to_owned()));
    }
    Ok(Members::Group(members))
}

/// The points of each machine of a group.
///
/// # Errors
/// When the agent cannot be reached, or a machine has none; it is named.
pub async fn points_of(
    client: &Client,
    group: &str,
    members: &[MachineDoc],
) -> Result<Vec<(String, Vec<PointDoc>)>, CliError> {
    let mut all = Vec::new();
    for member in members {
        let path = format!("/v1/machines/{}/points", escape(&member.machine));
        let document: Result<PointsDoc, CliError> = match client.get(&path).await {
            Ok(answer) => client.decode(answer).map_err(Into::into),
            Err(error) => Err(error.into()),
        };
        let document = document.map_err(|error| CliError {
            message: format!(
                "group {}: {}; none of its machines was touched",
                clean(group),
                error.message
            ),
            ..error
        })?;
        all.push((document.machine, document.points));
    }
    Ok(all)
}

fn is_shareable(point: &PointDoc) -> bool {
    point.damaged.is_none() && point.origin == "source" && !point.name.is_empty()
}

fn consistency(word: &str) -> Consistency {
    match word {
        "application" => Consistency::Application,
        "file-system" => Consistency::FileSystem,
        _ => Consistency::Crash,
    }
}

/// The points that all machines share, oldest first.
pub fn shared(machines: &[(String, Vec<PointDoc>)]) -> Vec<GroupPoint> {
    let Some(((first, points), others)) = machines.split_first() else {
        return Vec::new();
    };
    let once = |points: &[PointDoc], name: &str| {
        let mut named = points
            .iter()
            .filter(|point| point.name == name && point.origin == "source");
        let one = named.next().filter(|point| is_shareable(point)).cloned();
        one.filter(|_| named.next().is_none())
    };
    let mut shared: Vec<GroupPoint> = points
        .iter()
        .filter(|point| is_shareable(point) && once(points, &point.name).is_some())
        .filter_map(|point| {
            let mut found = GroupPoint {
                name: point.name.clone(),
                time: point.time,
                consistency: point.consistency.clone(),
                points: BTreeMap::from([(first.clone(), point.point)]),
            };
            for (machine, points) in others {
                let theirs = once(points, &point.name)?;
                found.time = found.time.max(theirs.time);
                if consistency(&theirs.consistency) < consistency(&found.consistency) {
                    found.consistency = theirs.consistency;
                }
                found.points.insert(machine.clone(), theirs.point);
            }
            Some(found)
        })
        .collect();
    shared.sort_by_key(|point| point.time);
    shared
}

/// The number of the point on each machine, in their order.
///
/// # Errors
/// When they share no such point, with the machines that do not have it.
pub fn choose(
    group: &str,
    machines: &[(String, Vec<PointDoc>)],
    to: &str,
    now: Timestamp,
) -> Result<Vec<u64>, CliError> {
    let refuse = |what: String, hint: &str| Err(CliError::new(ExitCode::Usage, what).with_hint(hint));
    let list = "machines share a point when their epochs are sent with the same --point-name; \"mt-agent points list\" with the name \
                of the group shows the points that they share";
    let group = clean(group);
    let count = machines.len();
    let shared = shared(machines);
    let newest = |good: &dyn Fn(&GroupPoint) -> bool| shared.iter().rev().find(|point| good(point));
    let found = match Wanted::parse(to) {
        Wanted::BeforeFailback => {
            let initial = machines.iter().map(|(machine, points)| {
                let point = points
                    .iter()
                    .find(|point| point.origin == "initial" && point.damaged.is_none());
                point.map(|point| point.point).ok_or(machine)
            });
            return initial.collect::<Result<Vec<u64>, _>>().or_else(|machine| {
                refuse(
                    format!(
                        "machine {} of group {group} has no point before-failback any more",
                        clean(machine)
                    ),
                    list,
                )
            });
        }
        Wanted::Epoch(number) => {
            return refuse(
                format!("{number} is the number of a point of one machine, and group {group} has {count}"),
                list,
            );
        }
        Wanted::Time(time) if time > now => {
            return refuse(
                format!("{time} is in the future"),
                "\"latest\" is the newest there is",
            );
        }
        Wanted::Latest(least) => newest(&|point| consistency(&point.consistency) >= least),
        Wanted::Time(time) => newest(&|point| point.time <= time),
        Wanted::Name(name) => newest(&|point| point.name == name),
    };
    if let Some(found) = found {
        return Ok(machines
            .iter()
            .filter_map(|(machine, _)| found.points.get(machine).copied())
            .collect());
    }
    let mut what = format!(
        "group {group} has no point \"{}\" that all of its {count} machines can reach",
        clean(to)
    );
    if let Wanted::Name(name) = Wanted::parse(to) {
        for (machine, points) in machines {
            let named: Vec<&PointDoc> = points.iter().filter(|point| point.name == name).collect();
            let why = match named.as_slice() {
                [] => "has none of that name".to_owned(),
                [one] if one.damaged.is_some() => "has it damaged".to_owned(),
                [_] => continue,
                several => format!("has {} of that name", several.len()),
            };
            what.push_str(&format!("; {} {why}", clean(machine)));
        }
    }
    refuse(what, list)
}

/// Looks whether a verb can be done with every machine of a group.
///
/// # Errors
/// When one cannot, with its name: nothing was done with any.
pub fn all_can(group: &str, members: &[MachineDoc], verb: Option<Verb>) -> Result<(), CliError> {
    for member in members {
        let refuse = |why: String, hint: &str| {
            let message = format!(
                "machine {} of group {} {why}; none of its machines was touched",
                clean(&member.machine),
                clean(group)
            );
            Err(CliError::new(ExitCode::Refused, message).with_hint(hint))
        };
        match verb {
            Some(verb) => {
                if let Err(illegal) = member.failover.next(verb) {
                    return refuse(format!("is {}: {illegal}", illegal.state), illegal.hint);
                }
            }
            None if member.failover != State::Replicating => {
                return refuse(format!("is {}", member.failover), member.failover.way_back());
            }
            None => {}
        }
        let forth = matches!(verb, None | Some(Verb::Failover));
        if let Some(why) = member
            .store
            .as_ref()
            .and_then(|store| store.stopped.as_ref())
            .filter(|_| forth)
        {
            return refuse(
                format!("is stopped: {}", clean(why)),
                "put that right first, see \"mt-agent status\"",
            );
        }
        if let Some(busy) = member.busy.as_ref().filter(|_| verb.is_none()) {
            return refuse(
                format!("is busy: {}", clean(busy)),
                "wait for it, see \"mt-agent jobs list\"",
            );
        }
        if let (Some(Verb::Undo), Some(until)) = (verb, member.undo_until)
            && member.failover == State::Committed
            && until < Timestamp::now()
        {
            return refuse(
                format!("could be undone until {}", time_text(until)),
                "\"mt-agent reprotect\" replicates to its disks anew",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    fn point(number: u64, minute: i64, name: &str) -> PointDoc {
        PointDoc {
            point: number,
            time: at(minute),
            received: at(minute),
            consistency: "file-system".to_owned(),
            origin: if number == 0 { "initial" } else { "source" }.to_owned(),
            rolled_to: None,
            name: name.to_owned(),
            tags: vec![],
            changed_bytes: 0,
            pinned: false,
            damaged: None,
        }
    }

    fn group() -> Vec<(String, Vec<PointDoc>)> {
        let mut app = vec![
            point(0, 1, "before-failback"),
            point(1, 10, "morning"),
            point(2, 20, "noon"),
            point(3, 25, "twice"),
            point(4, 30, "evening"),
            point(5, 40, "alone"),
        ];
        let mut db = vec![
            point(0, 2, "before-failback"),
            point(4, 11, "morning"),
            point(5, 22, "noon"),
            point(6, 26, "twice"),
            point(7, 27, "twice"),
            point(8, 31, "evening"),
            point(9, 50, ""),
        ];
        app[2].consistency = "application".to_owned();
        db[2].consistency = "crash".to_owned();
        db[5].damaged = Some("a byte".to_owned());
        vec![("app01".to_owned(), app), ("db01".to_owned(), db)]
    }

    #[test]
    fn a_point_of_a_group_is_one_that_every_machine_has_once_and_whole() {
        let shared = shared(&group());
        let seen: Vec<(&str, Timestamp, &str)> = shared
            .iter()
            .map(|point| (point.name.as_str(), point.time, point.consistency.as_str()))
            .collect();
        assert_eq!(
            seen,
            [("morning", at(11), "file-system"), ("noon", at(22), "crash")]
        );
        assert_eq!(shared[1].points["db01"], 5);
    }

    #[test]
    fn what_is_meant_by_a_word_a_time_or_a_name() {
        for (to, wanted) in [
            ("latest", [2, 5]),
            ("latest-file-system", [1, 4]),
            ("noon", [2, 5]),
            ("before-failback", [0, 0]),
            ("1970-01-01T00:22:00Z", [2, 5]),
            ("1970-01-01 00:21:59", [1, 4]),
            ("1970-01-01T02:11+02:00", [1, 4]),
        ] {
            assert_eq!(choose("shop", &group(), to, at(60)).unwrap(), wanted, "{to}");
        }
        for (to, words) in [
            ("evening", "db01 has it damaged"),
            ("twice", "db01 has 2 of that name"),
            ("alone", "db01 has none of that name"),
            ("2", "number of a point of one machine"),
            ("latest-application", "no point \"latest-application\""),
            ("1970-01-01T00:10:59Z", "no point"),
            ("1970-01-01T01:00:01Z", "in the future"),
            ("\u{1b}[2J", "no point \"?[2J\""),
        ] {
            let error = choose("shop", &group(), to, at(60)).unwrap_err();
            assert!(error.message.contains(words), "{to}: {}", error.message);
            assert_eq!(error.exit_code, ExitCode::Usage);
        }
        let mut gone = group();
        gone[1].1.remove(0);
        let error = choose("shop", &gone, "before-failback", at(60)).unwrap_err();
        assert!(error.message.contains("machine db01"), "{}", error.message);
    }
}
