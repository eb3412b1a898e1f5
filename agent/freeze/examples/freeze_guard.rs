//! A guard by itself, as the tests start it: `freeze_guard LIMIT_MS LEVEL PATH [LEVEL PATH]...`

fn main() -> std::io::Result<()> {
    mt_freeze::guard::run(std::env::args_os().skip(1))
}
