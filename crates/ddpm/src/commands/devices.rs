//! `ddpm devices`: the devices that this program can use on this machine, and why it cannot use others.

use burn::tensor::Device;
use clap::Args;
use denoising_diffusion::device::{Backend, DeviceError, DeviceMemory, computes_in_bf16, list, multiplies_in_tf32};
use serde_json::{Value, json};

use crate::failure::Result;
use crate::machine::default_threads;
use crate::output::{self, Rows};
use crate::{cache, panics};

/// List the devices that this build can compute with.
#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &DevicesArgs) -> Result {
    cache::keep_kernels();
    let mut rows = Rows::default();
    let (threads, bf16) = (default_threads(), computes_in_bf16(&Device::flex()));
    let (mut devices, mut missing) = (vec![json!({ "device": "cpu", "threads": threads, "bf16": bf16 })], Vec::new());
    rows.row("cpu", format!("{threads} threads, {}", if bf16 { "f32 and bf16" } else { "f32" }));
    for backend in Backend::ALL {
        let mut absent = |rows: &mut Rows, name: &str, why: String| {
            missing.push(json!({ "device": name, "reason": why }));
            rows.row(name, why);
        };
        match list(backend) {
            Err(DeviceError::NotCompiled(name)) => {
                absent(&mut rows, name, format!("not in this build (build with --features {name})"));
            }
            Err(error) => absent(&mut rows, backend.name(), error.to_string()),
            Ok(found) if found.is_empty() => {
                absent(&mut rows, backend.name(), "no device or no driver found".to_string());
            }
            Ok(found) => {
                for (index, device) in found.into_iter().enumerate() {
                    let name = format!("{}:{index}", backend.name());
                    match device {
                        Ok(opened) => {
                            let memory = opened.memory();
                            let hardware = opened.hardware.unwrap_or_else(|| "works".to_string());
                            let bf16 = computes_in_bf16(&opened.device);
                            let tf32 = multiplies_in_tf32(&opened.device);
                            let bytes = memory.map(|memory| json!({ "free": memory.free, "total": memory.total }));
                            devices.push(json!({
                                "device": name, "hardware": hardware, "bf16": bf16, "tf32": tf32, "memory": bytes
                            }));
                            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
                            let free = memory.map(|DeviceMemory { free, total }| {
                                format!("{:.1} of {:.1} GiB free", gib(free), gib(total))
                            });
                            let f32 = if tf32 { "f32 (matrices in tf32)" } else { "f32" };
                            let known = [Some(hardware), bf16.then(|| format!("{f32} and bf16")), free];
                            rows.row(name, known.into_iter().flatten().collect::<Vec<_>>().join(", "));
                        }
                        Err(error) => absent(&mut rows, &name, error.to_string()),
                    }
                }
            }
        }
    }
    panics::forget();
    if args.json {
        return output::json(&json!({ "devices": Value::Array(devices), "missing": missing }));
    }
    output::result(rows.aligned())
}
