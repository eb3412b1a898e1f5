//! Lists the disks of this machine; with arguments `PATH ID` pairs, those as lab disks, too.
//!
//! `--json` first gives the JSON document. For trying the inventory in a guest without the whole agent.

use mt_agent::cli::disks::{ListArgs, list};
use mt_agent::disks::facts::LabDisk;
use mt_agent::disks::inventory::DiskScope;

fn main() -> std::process::ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let json = args.first().is_some_and(|arg| arg == "--json");
    if json {
        args.remove(0);
    }
    let mut lab = Vec::new();
    for pair in args.chunks(2) {
        let [path, id] = pair else {
            eprintln!("error: lab disks are given as PATH ID");
            return std::process::ExitCode::from(2);
        };
        match id.parse() {
            Ok(scsi_id) => lab.push(LabDisk {
                scsi_id,
                path: path.into(),
                block_size: None,
            }),
            Err(err) => {
                eprintln!("error: {err}");
                return std::process::ExitCode::from(2);
            }
        }
    }
    match list(&ListArgs { json, config: None }, &DiskScope::new(&lab, &[]), &[]) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err}");
            err.exit_code.into()
        }
    }
}
