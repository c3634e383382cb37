//! What the tests of the program share: a folder of its own for each test, a tiny recipe, and what to expect of a failure.
#![allow(dead_code)] // every test file uses its part

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Settings of a run that takes a few milliseconds a step.
pub const TINY: &str =
    "--dim 4 --dim-mults 1 --attn-heads 1 --attn-dim-head 4 --batch-size 4 --timesteps 8 --num-samples 2 --log-every 1";

/// A folder to work in, removed at the end.
pub struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Place {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ddpm-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The program with arguments separated by spaces, to be run here.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ddpm"));
        command.current_dir(&self.0).args(args.split_whitespace()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the program, which must succeed; what it printed to stdout.
    pub fn ok(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "ddpm {args}\n{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one JSON object that a command prints.
    pub fn json(&self, args: &str) -> serde_json::Value {
        let text = self.ok(&format!("{args} --json"));
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Runs the program, which must end with this code, one `error:` line that contains `part`, and nothing on stdout.
    pub fn fails(&self, args: &str, code: i32, part: &str) -> String {
        let output = self.run(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "ddpm {args}\n{text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "ddpm {args}\n{text}");
        assert!(text.contains(part), "ddpm {args}: no {part:?} in\n{text}");
        assert!(!text.contains("internal:") && !text.contains("panicked"), "{text}");
        assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
        text
    }

    /// Starts the program, its stderr going to the file `stderr` here. It heeds signals even if the tests run in the background, where a shell has
    /// Ctrl-C ignored.
    pub fn spawn(&self, args: &str) -> Child {
        let file = std::fs::File::create(self.path("stderr")).unwrap();
        let mut command = self.command(args);
        #[cfg(unix)]
        heed_signals(&mut command);
        command.stderr(file).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// A grey image in a file.
    pub fn image(&self, name: &str, width: u32, height: u32) {
        let path = self.write(name, []);
        image::GrayImage::from_fn(width, height, |x, y| image::Luma([(x * 7 + y * 13) as u8])).save(path).unwrap();
    }
}

#[cfg(unix)]
fn heed_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let heed = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the default action runs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec it does nothing but call `signal`, which is safe there.
    unsafe { command.pre_exec(heed) };
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file that the reference wrote.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../denoising-diffusion/tests/golden").join(name)
}

/// All files below a folder with their contents; from the log what depends on the clock is taken out.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn visit(root: &Path, folder: &Path, files: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(root, &path, files);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let bytes = std::fs::read(&path).unwrap();
            files.push((name.clone(), if name == "log.jsonl" { without_clock(&bytes) } else { bytes }));
        }
    }
    let mut files = Vec::new();
    visit(folder, folder, &mut files);
    files.sort();
    files
}

fn without_clock(log: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(log).unwrap();
    let lines = text.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = record.as_object_mut().unwrap();
        for clock in ["images_per_s", "seconds"] {
            fields.remove(clock);
        }
        record.to_string() + "\n"
    });
    lines.collect::<String>().into_bytes()
}

/// Two folders hold the same, byte for byte.
pub fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (contents(left), contents(right));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    for ((name, left), (_, right)) in left.iter().zip(&right) {
        assert!(left == right, "{name} differs");
    }
}

/// Waits until `ready` holds, for at most a minute.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if ready() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("waited in vain: {what}");
}

/// The largest difference of two values; NaN, for which no comparison holds, if one is not a number.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "numbers of values");
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most: f32, off| if most.is_nan() || off.is_nan() { f32::NAN } else { most.max(off) })
}
