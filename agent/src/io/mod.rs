//! Where bytes wait and where disks are read and written: pooled buffers and the threads that may block.

pub mod buffers;
pub mod disk_threads;
pub mod region;
