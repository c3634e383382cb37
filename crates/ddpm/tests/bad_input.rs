//! Bad input: exit code 1 or 2, one line that starts with `error:`, nothing lost, nothing left behind.

mod common;

use burn::tensor::Device;
use common::{Place, TINY, golden};
use denoising_diffusion::data::npy::write_npy_f32;
use denoising_diffusion::device::computes_in_bf16;

/// `ddpm train DATA` fails, and leaves not a run folder.
fn refused(place: &Place, args: &str, code: i32, part: &str) -> String {
    let text = place.fails(&format!("train {args} --steps 1"), code, part);
    assert!(!place.path("runs").exists(), "{args}");
    text
}

#[test]
fn missing_and_empty_data() {
    let place = Place::new();
    let text = refused(&place, "nowhere", 1, "nowhere");
    assert!(text.contains("hint:"), "{text}");
    std::fs::create_dir(place.path("empty")).unwrap();
    refused(&place, "empty", 1, "no images");
    place.fails("inspect empty", 1, "no images");
    place.fails("inspect nowhere", 1, "nowhere");
}

#[test]
fn broken_images_are_named() {
    let place = Place::new();
    for i in 0..4 {
        place.image(&format!("data/{i}.png"), 8, 8);
    }
    place.write("data/zero.png", "");
    place.write("data/text.png", "this is a text file");
    let whole = place.path("data/0.png");
    let bytes = std::fs::read(&whole).unwrap();
    place.write("data/torn.png", &bytes[..bytes.len() / 2]);
    let text = refused(&place, "data", 1, "3 of 7 image files are broken");
    for name in ["zero.png", "text.png", "torn.png"] {
        assert!(text.contains(name), "{text}");
    }
    let summary = place.ok("inspect data");
    assert!(summary.contains("3 broken files") && summary.contains("text.png"), "{summary}");
    place.ok(&format!("train data {TINY} --steps 1 --max-broken 0.5"));
}

#[test]
fn one_image_of_another_kind_is_named() {
    let place = Place::new();
    for i in 0..4 {
        place.image(&format!("sizes/{i}.png"), 8, 8);
        place.image(&format!("channels/{i}.png"), 8, 8);
    }
    place.image("sizes/other.png", 10, 6);
    let text = refused(&place, "sizes", 1, "other.png is 6x10");
    assert!(text.contains("--image-size 8"), "{text}");
    image::RgbImage::new(8, 8).save(place.path("channels/colour.png")).unwrap();
    let text = refused(&place, "channels", 1, "colour.png has 3");
    assert!(text.contains("--channels"), "{text}");
}

#[test]
fn a_gigantic_image_is_refused_by_its_header() {
    let place = Place::new();
    place.image("data/a.png", 8, 8);
    let mut header = *b"IHDR\0\0\0\0\0\0\0\0\x08\x00\0\0\0";
    header[4..8].copy_from_slice(&30_000_u32.to_be_bytes());
    header[8..12].copy_from_slice(&30_000_u32.to_be_bytes());
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in [&header[..], b"IDAT\x78\x9c\x03\x00\x00\x00\x00\x01", b"IEND"] {
        png.extend((chunk.len() as u32 - 4).to_be_bytes());
        png.extend(chunk);
        png.extend(crc32(chunk).to_be_bytes());
    }
    place.write("data/huge.png", png);
    refused(&place, "data", 1, "huge.png");
}

/// The checksum of a PNG's chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn weights_that_are_none() {
    let place = Place::new();
    std::fs::copy(golden("model-1.pt"), place.path("model.pt")).unwrap();
    place.ok("convert model.pt --image-size 8 --out ours.safetensors");
    let bytes = place.read("ours.safetensors");
    place.write("cut.safetensors", &bytes[..bytes.len() / 2]);
    let pt = place.read("model.pt");
    place.write("cut.pt", &pt[..pt.len() / 2]);
    place.write("text.pt", "not a checkpoint");
    let other = golden("../../src/interop/testdata/other_network.pt");
    std::fs::copy(other, place.path("other.pt")).unwrap();
    std::fs::copy(golden("schedules.safetensors"), place.path("other.safetensors")).unwrap();
    for (name, part) in [
        ("cut.safetensors", "cut.safetensors"),
        ("cut.pt", "cut.pt"),
        ("text.pt", "text.pt"),
        ("other.pt", "holds no Unet"),
        ("other.safetensors", "holds no Unet"),
        ("missing.pt", "no such file"),
    ] {
        for command in ["sample", "info", "convert --image-size 8 --out new.safetensors"] {
            let text = place.fails(&format!("{command} {name}"), 1, part);
            assert!(text.contains("hint:"), "{text}");
        }
    }
    assert!(!place.path("new.safetensors").exists() && !place.path("samples.png").exists());
    place.write("folder/x", "");
    place.fails("sample folder", 1, "not a run folder");
}

#[test]
fn run_folders_are_never_overwritten() {
    let place = Place::new();
    place.write("taken/notes.txt", "mine");
    let text = place.fails(&format!("train digits {TINY} --steps 1 --out taken"), 1, "exists already");
    assert!(text.contains("--resume"), "{text}");
    assert_eq!(place.read("taken/notes.txt"), b"mine");
    place.fails(&format!("train digits {TINY} --steps 1 --out taken/notes.txt/run"), 1, "cannot create");
    place.fails("train --resume taken", 1, "not a run folder");
    place.fails("train --resume nowhere", 1, "nowhere");
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_folder_that_cannot_be_written() {
    Place::new().fails(&format!("train digits {TINY} --steps 1 --out /proc/run"), 1, "cannot create /proc/run");
}

#[test]
fn settings_without_sense() {
    let place = Place::new();
    for (flags, part) in [
        ("--dim 0", "`dim`"),
        ("--dim-mults 1,2,4,8,16", "16x16"),
        ("--timesteps 1", "`timesteps`"),
        ("--timesteps 8 --sampling-timesteps 9", "`sampling_timesteps`"),
        ("--batch-size 100000", "batch_size is 100000"),
        ("--lr fast", "--lr"),
        ("--lr nan", "--lr"),
        ("--lr -1", "`lr`"),
        ("--objective eps2", "pred_noise"),
        ("--device cuda:0", "--device"),
        ("--device cpu --precision tf32", "cpu does not compute in tf32"),
        ("--precision f16", "expected f32, tf32 or bf16, found `f16`"),
        ("--threads 0", "--threads"),
        ("--dropout 1", "`dropout`"),
        ("--cosine-s 0.1", "`cosine_s`"),
        ("--learned-variance", "`learned_variance`"),
        ("--random-fourier-features", "random_fourier_features"),
        ("--no-such-flag", "--no-such-flag"),
        ("--workers 1000000000000000000", "`workers` is 1000000000000000000; expected at most 1024"),
        ("--channels 3", "channels = 3"),
        ("--init-dim 4294967295", "`init_dim` is 4294967295; at most 1000000 is allowed"),
        ("--dim 1000000 --dim-mults 1,1000000 --dry-run", "a stage too wide"),
        ("--dim-mults 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "`dim_mults` names 17 stages"),
        ("--model dit --depth 1001", "`depth` is 1001; at most 1000 is allowed"),
        ("--model dit --mlp-ratio 1e30", "`mlp_ratio`"),
        ("--model karras_unet --diffusion elucidated --num-blocks-per-stage 4294967295", "`num_blocks_per_stage`"),
        ("--model karras_unet --diffusion elucidated --num-downsamples 64", "`num_downsamples`"),
        ("--timesteps 1000000000000", "`timesteps`"),
        ("--xm-candidates 4294967296", "`xm_candidates`"),
        ("--diffusion elucidated --sampling-timesteps 9000000000000000000", "`sampling_timesteps`"),
        ("--noise-levels karras --sampling-timesteps 9000000000000000000", "`sampling_timesteps`"),
        ("--accumulate 9000000000000000000", "`accumulate`"),
        ("--sigmoid-tau 0.05", "beta of noise level"),
    ] {
        let output = place.run(&format!("train digits --steps 1 {flags}"));
        let text = common::stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{flags}: {text}");
        assert!(text.starts_with("error:") && text.contains(part), "{flags}: {text}");
    }
    place.fails("train digits --steps 0", 2, "`steps`");
    place.fails("train digits --dry-run --steps 0", 2, "`steps`");
    assert_eq!(std::fs::read_dir(place.path("")).unwrap().count(), 0);
}

/// Whether the CPU computes in bf16 depends on the machine.
#[test]
fn bf16_on_the_cpu_is_refused_without_a_matrix_unit_and_with_precise() {
    let place = Place::new();
    let flags = "--device cpu --precision bf16";
    if computes_in_bf16(&Device::flex()) {
        place.ok(&format!("train digits --dry-run --steps 1 {flags}"));
        refused(&place, &format!("digits {flags} --precise"), 2, "--precise and --precision bf16 exclude each other");
    } else {
        let text = refused(&place, &format!("digits {flags}"), 2, "cpu does not compute in bf16");
        assert!(text.contains("AMX"), "{text}");
    }
}

#[test]
fn recipes_with_mistakes_name_the_line_and_the_key() {
    let place = Place::new();
    for (text, parts) in [
        ("[train]\nsteps = 1\nstepz = 2\n", ["r.toml, line 3", "stepz"]),
        ("[trian]\nsteps = 1\n", ["line 1", "trian"]),
        ("[train]\nlr = \"fast\"\n", ["line 2", "lr"]),
        ("[unet]\nchannels = 3\n", ["r.toml", "channels"]),
        ("[train\n", ["line 1", "r.toml"]),
    ] {
        place.write("r.toml", text);
        let said = place.fails("train digits --config r.toml", 2, parts[0]);
        assert!(said.contains(parts[1]), "{said}");
    }
    let said = place.fails("train digits --config nowhere.toml", 2, "nowhere.toml");
    assert!(said.contains("digits, ecg, emoji, fashion-mnist"), "{said}");
}

#[test]
fn samples_that_cannot_be() {
    let place = Place::new();
    place.ok(&format!("train digits {TINY} --steps 1 --out run"));
    for (flags, part) in [
        ("--steps 9", "`sampling_timesteps`"),
        ("-n 0", "`num_samples`"),
        ("--batch-size 0", "`sample_batch_size`"),
        ("--eta 2", "`eta`"),
        ("--sampler ddpm --eta 0.5", "ddim"),
        ("--variance large", "ddpm"),
        ("--out images.tiff", ".png"),
        ("--device tpu", "--device"),
        ("--init-noise nowhere.npy", "nowhere.npy"),
    ] {
        let output = place.run(&format!("sample run {flags}"));
        let text = common::stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{flags}: {text}");
        assert!(text.starts_with("error:") && text.contains(part), "{flags}: {text}");
    }
    assert!(!place.path("samples.png").exists());
    // Before anything is drawn.
    place.fails("sample run --out x.npy --real", 2, "--real needs");
    for huge in ["-n 1000000000000 --out x.npy", "-n 18446744073709551615 --out many/"] {
        place.fails(&format!("sample run {huge}"), 2, "do not fit into memory");
    }
    place.fails("eval run -n 1000000000000 --metrics swd", 2, "do not fit into memory");
}

#[test]
fn hints_name_flags_that_the_command_has() {
    let place = Place::new();
    for i in 0..4 {
        place.image(&format!("sizes/{i}.png"), 8, 8 + i);
    }
    let text = place.fails("stats sizes -o s.npz", 1, "images differ in size");
    assert!(text.contains("hint:") && !text.contains("--image-size"), "{text}");
    place.write("sizes/text.png", "text");
    let text = place.fails("stats sizes -o s.npz", 1, "are broken");
    assert!(text.contains("hint:") && !text.contains("--max-broken"), "{text}");
    refused(&place, "sizes --max-broken 0.5 --channels 7 --image-size 8", 1, "which give 1 to 4");
}

#[test]
fn inspect_takes_what_arrays_need_said() {
    let place = Place::new();
    let values: Vec<f32> = (0..96).map(|i| i as f32 - 20.0).collect();
    write_npy_f32(&place.path("x.npy"), &[2, 12, 4], &values).unwrap();
    let text = place.fails("inspect x.npy", 1, "values range from -20 to 75");
    assert!(text.contains("--value-range"), "{text}");
    let told = place.ok("inspect x.npy --layout sequences");
    assert!(told.contains("12x4 (channels x length)") && told.contains("read as [-20, 75]"), "{told}");
    assert!(place.ok("inspect x.npy --value-range=-20,80").contains("read as [-20, 80]"));
}

#[test]
fn grey_and_colour_are_compared_as_colour() {
    let place = Place::new();
    place.image("mixed/grey.png", 8, 8);
    image::RgbImage::new(8, 8).save(place.path("mixed/colour.png")).unwrap();
    // All that is missing are the weights, which come after the images.
    let text = place.fails("stats mixed -o s.npz --inception nowhere.pth", 1, "nowhere.pth");
    assert!(!text.contains("channels"), "{text}");
    image::RgbaImage::new(8, 8).save(place.path("mixed/clear.png")).unwrap();
    let text = place.fails("stats mixed -o s.npz --inception nowhere.pth", 1, "images differ in channels");
    assert!(text.contains("transparency") && !text.contains("--channels"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_are_told_as_far_as_they_are() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let name = OsStr::from_bytes(b"d\xff");
    std::fs::create_dir(place.path("").join(name)).unwrap();
    image::GrayImage::new(4, 4).save(place.path("").join(name).join("a.png")).unwrap();
    std::fs::write(place.path("").join(name).join(OsStr::from_bytes(b"torn\xfe.png")), "").unwrap();
    let output = place.command("inspect --json").arg(name).output().unwrap();
    assert!(output.status.success(), "{}", common::stderr(&output));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["broken"][0]["path"], "torn\u{fffd}.png");
    let dry = format!("train digits {TINY} --steps 1 --dry-run --json --out");
    let output = place.command(&dry).arg(name).output().unwrap();
    assert!(!common::stderr(&output).contains("panicked"), "{}", common::stderr(&output));
    let output = place.command(&dry).arg(OsStr::from_bytes(b"run\xff")).output().unwrap();
    assert!(output.status.success(), "{}", common::stderr(&output));
}
