//! Scratch folders on a real file system.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder of the test's own, removed at the end; kept with `KEEP_WRECK=1`.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// A new, empty folder. Not under `/tmp`, which may be a `tmpfs`: direct I/O is part of what is tested.
    pub fn new() -> Self {
        let mut folder = tempfile::Builder::new()
            .prefix("mt-tests-")
            .tempdir_in("/var/tmp")
            .expect("/var/tmp can be written");
        if std::env::var_os("KEEP_WRECK").is_some() {
            println!("the scene is kept in {}", folder.path().display());
            folder.disable_cleanup(true);
        }
        Self { folder }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of `size` bytes, all hole.
    pub fn sparse(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(size))
            .expect("scratch has room");
        path
    }

    /// A file that holds `content`.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, content).expect("scratch has room");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
