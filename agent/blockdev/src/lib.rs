//! Safe faces of the kernel interfaces the appliance needs.
