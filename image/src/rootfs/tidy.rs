// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is done to every root file system after its packages are in: modules and files that an appliance never needs
//! go, what the spec requires is proved to be there, secrets are proved to be absent.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result, shown};
use crate::spec::ImageSpec;

/// Version of the one kernel in a root file system.
///
/// # Errors
/// There is none, or several.
pub fn kernel_version(root: &Path) -> Result<String> {
    let folder = root.join("usr/lib/modules");
    let mut versions = names(&folder)?;
    match (versions.pop(), versions.pop()) {
        (Some(version), None) => Ok(version),
        (None, _) => Err(Error::new(
            Kind::Config,
            "the packages of the spec bring no kernel",
        )),
        (Some(one), Some(other)) => Err(Error::new(
            Kind::Config,
            format!("the packages of the spec bring two kernels, {one} and {other}"),
        )),
    }
}

/// Names in a folder, sorted; none when there is no folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", folder, error))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes the module folders that the spec drops, but for those it keeps and what required modules depend on.
/// Run `depmod` afterwards.
///
/// # Errors
/// A required module is not in the kernel, or removing failed.
pub fn trim_modules(root: &Path, spec: &ImageSpec, version: &str) -> Result<u64> {
    let base = root.join("usr/lib/modules").join(version);
    let listing = |name: &str| {
        let path = base.join(name);
        fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))
    };
    let dependencies = listing("modules.dep")?;
    let modules = Dependencies::parse(&dependencies);
    let builtin: HashSet<String> = listing("modules.builtin")?.lines().map(module_name).collect();
    let mut needed = HashSet::new();
    for name in &spec.modules.required {
        let name = name.replace('-', "_");
        if !builtin.contains(&name) && !modules.collect(&name, &mut needed) {
            let text =
                format!("kernel {version} has no module {name}, which modules.required of the spec names");
            return Err(Error::new(Kind::Config, text));
        }
    }
    let mut freed = 0;
    for path in modules.paths() {
        let inner = path.strip_prefix("kernel/").unwrap_or(path);
        let below = |folders: &[String]| {
            folders.iter().any(|folder| {
                inner
                    .strip_prefix(folder.as_str())
                    .is_some_and(|rest| rest.starts_with('/'))
            })
        };
        if below(&spec.modules.drop) && !below(&spec.modules.keep) && !needed.contains(path) {
            let file = base.join(path);
            freed += file.metadata().map_or(0, |metadata| metadata.len());
            fs::remove_file(&file).map_err(|error| Error::io("remove", &file, error))?;
        }
    }
    Ok(freed)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// `modules.dep`: each module with all modules it needs.
struct Dependencies<'a> {
    lines: HashMap<String, (&'a str, Vec<&'a str>)>,
}

impl<'a> Dependencies<'a> {
    fn parse(text: &'a str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let entries =
            lines.map(|(path, needs)| (module_name(path), (path, needs.split_whitespace().collect())));
        Self {
            lines: entries.collect(),
        }
    }

    /// Adds a module's file and those it needs; `false` when there is no such module.
    fn collect(&self, name: &str, needed: &mut HashSet<&'a str>) -> bool {
        let Some((path, needs)) = self.lines.get(name) else {
            return false;
        };
        needed.insert(path);
        needed.extend(needs);
        true
    }

    fn paths(&self) -> impl Iterator<Item = &'a str> {
        self.lines.values().map(|(path, _)| *path)
    }
}

/// Removes what the spec trims. A folder is emptied and kept, since programs expect it to exist.
///
/// # Errors
/// Removing failed.
pub fn trim_paths(root: &Path, spec: &ImageSpec) -> Result<()> {
    for pattern in &spec.trim.paths {
        for path in matches(root, pattern)? {
            let metadata = path
                .symlink_metadata()
                .map_err(|error| Error::io("examine", &path, error))?;
            if metadata.is_dir() {
                for name in names(&path)? {
                    let inner = path.join(name);
                    if pattern == DOCUMENTATION && inner.is_dir() && !inner.is_symlink() {
                        keep_licence(&inner)?;
                    } else {
                        remove(&inner)?;
                    }
                }
            } else {
                remove(&path)?;
            }
        }
    }
    Ok(())
}

/// Documentation of packages. Whoever passes programs on has to pass their licences on too, so these always stay.
const DOCUMENTATION: &str = "/usr/share/doc";

/// Leaves nothing but the licence in a package's folder of documentation.
fn keep_licence(folder: &Path) -> Result<()> {
    for name in names(folder)? {
        if name != "copyright" {
            remove(&folder.join(name))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let metadata = path
        .symlink_metadata()
        .map_err(|error| Error::io("examine", path, error))?;
    let removed = if metadata.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.map_err(|error| Error::io("remove", path, error))
}

/// Paths that a pattern names; one `*` in its last part stands for anything.
fn matches(root: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let (folder, last) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    let folder = root.join(folder.trim_start_matches('/'));
    let found = names(&folder)?
        .into_iter()
        .filter(|name| match last.split_once('*') {
            Some((start, end)) => {
                name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
            }
            None => name == last,
        });
    Ok(found.map(|name| folder.join(name)).collect())
}

/// Proves that no secret, identity or trace of the build is in the root file system.
///
/// # Errors
/// Names the first one found.
pub fn refuse_secrets(root: &Path) -> Result<()> {
    let refuse = |path: &Path, what: &str| {
        Err(Error::new(
            Kind::Unexpected,
            format!("{} would be in the image: {what}", shown(path)),
        )
        .hint("add it to trim.paths of the spec"))
    };
    for name in ["etc/machine-id", "var/lib/dbus/machine-id"] {
        let path = root.join(name);
        if path
            .metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
        {
            return refuse(&path, "an identity that every appliance would share");
        }
    }
    for pattern in [
        "/etc/ssh/ssh_host_*",
        "/var/lib/systemd/random-seed",
        "/root/.bash_history",
        "/root/.ssh/*",
        "/root/.rpmdb",
    ] {
        if let Some(path) = matches(root, pattern)?.first() {
            return refuse(path, "a key or a trace of the build");
        }
    }
    let mut open = vec![root.join("var/log"), root.join("etc/ssl/private")];
    while let Some(folder) = open.pop() {
        for name in names(&folder)? {
            let path = folder.join(name);
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => open.push(path),
                Ok(metadata) if metadata.len() > 0 => return refuse(&path, "a log or a key"),
                _ => {}
            }
        }
    }
    let shadow = root.join("etc/shadow");
    if let Ok(text) = fs::read_to_string(&shadow) {
        let open_account = text.lines().find(|line| {
            let hash = line.split(':').nth(1).unwrap_or("*");
            !hash.starts_with(['*', '!'])
        });
        if let Some(line) = open_account {
            let account = line.split(':').next().unwrap_or_default();
            return refuse(
                &shadow,
                &format!("account {account} has a password or none is needed"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    fn small_root(folder: &Path) -> ImageSpec {
        let base = folder.join("usr/lib/modules/6.1/kernel");
        for path in [
            "drivers/net/ethernet/intel/e1000/e1000.ko",
            "sound/snd.ko",
            "drivers/gpu/need.ko",
            "fs/xfs/xfs.ko",
        ] {
            fs::create_dir_all(base.join(path).parent().unwrap()).unwrap();
            fs::write(base.join(path), "x").unwrap();
        }
        let dep = "kernel/drivers/net/ethernet/intel/e1000/e1000.ko:\nkernel/sound/snd.ko:\nkernel/drivers/gpu/need.ko:\n\
                   kernel/fs/xfs/xfs.ko: kernel/drivers/gpu/need.ko\n";
        fs::write(base.join("../modules.dep"), dep).unwrap();
        fs::write(base.join("../modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        let mut spec = spec::parse(include_str!("../../specs/debian.toml")).unwrap();
        spec.modules.required = vec!["xfs".into(), "ext4".into()];
        spec
    }

    #[test]
    fn modules_go_unless_kept_or_needed() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = small_root(folder.path());
        let version = kernel_version(folder.path()).unwrap();
        trim_modules(folder.path(), &spec, &version).unwrap();
        let base = folder.path().join("usr/lib/modules/6.1/kernel");
        assert!(!base.join("sound/snd.ko").exists());
        assert!(
            base.join("drivers/gpu/need.ko").exists(),
            "a required module needs it"
        );
        assert!(
            base.join("drivers/net/ethernet/intel/e1000/e1000.ko").exists(),
            "the spec keeps it"
        );
        spec.modules.required.push("no_such".into());
        let error = trim_modules(folder.path(), &spec, &version).unwrap_err();
        assert!(error.to_string().contains("has no module no_such"), "{error}");
    }

    #[test]
    fn secrets_are_found() {
        for (path, text) in [
            ("etc/machine-id", "abc"),
            ("etc/ssh/ssh_host_rsa_key", "x"),
            ("var/log/apt/history.log", "x"),
            ("etc/shadow", "root::1:0:\n"),
            ("etc/shadow", "root:$6$x$y:1:0:\n"),
            ("root/.ssh/authorized_keys", "x"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            refuse_secrets(folder.path()).unwrap();
            let file = folder.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            assert!(refuse_secrets(folder.path()).is_err(), "{path}");
        }
    }

    #[test]
    fn trimming_stays_within_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("var/log/deep");
        fs::create_dir_all(&log).unwrap();
        fs::write(log.join("x.log"), "x").unwrap();
        fs::create_dir_all(folder.path().join("etc/ssh")).unwrap();
        let doc = folder.path().join("usr/share/doc/tool");
        fs::create_dir_all(doc.join("examples")).unwrap();
        fs::write(doc.join("copyright"), "licence").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("etc/ssh/ssh_host_link")).unwrap();
        let spec = spec::parse(include_str!("../../specs/debian.toml")).unwrap();
        trim_paths(folder.path(), &spec).unwrap();
        assert!(folder.path().join("var/log").exists() && !log.exists());
        assert!(doc.join("copyright").exists() && !doc.join("examples").exists());
        assert!(!folder.path().join("etc/ssh/ssh_host_link").is_symlink());
        assert!(Path::new("/etc/passwd").exists());
    }
}
