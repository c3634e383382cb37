//! What was evaluated, where the numbers come from, and how to obtain them again.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::super::curve::escape;
use super::super::figures::{significant, thousands};
use super::super::progress::words;
use super::parts;
use crate::diffusion::GuidanceConfig;
use crate::eval::result::{Evaluation, Extractor, Sampling};

/// The heading, and one line on what was compared with what.
pub(super) fn header(title: &str, evaluation: &Evaluation) -> String {
    let (title, provenance) = (escape(title), &evaluation.provenance);
    let [generated, real] = [&provenance.generated, &provenance.real].map(|name| escape(name));
    format!("<header>\n<h1>{title}</h1>\n<p><b>{generated}</b> evaluated against <b>{real}</b></p>\n</header>\n")
}

/// Where numbers come from; of the options of sampling, those that differ from their defaults.
pub(super) fn section(evaluation: &Evaluation) -> String {
    let provenance = &evaluation.provenance;
    let mut list = List::default();
    list.text("evaluated", &provenance.generated).text("against", &provenance.real);
    if let Some(digest) = &provenance.real_digest {
        list.digest("SHA-256 of the real data", digest);
    }
    list.text("seed", &provenance.seed.to_string());
    if let Some(sampling) = &provenance.sampling {
        list.sampling(sampling);
    }
    if let Some(extractor) = &provenance.extractor {
        list.extractor(extractor);
    }
    list.text("version", &format!("denoising-diffusion {}", evaluation.version));
    // If a clock gave nonsense, the page is still made.
    if let Ok(time) = Duration::try_from_secs_f64(evaluation.seconds) {
        let short = evaluation.seconds < 9.5;
        list.text("time taken", &if short { format!("{} s", significant(evaluation.seconds, 2)) } else { words(time) });
    }
    parts::section("provenance", "Provenance", &format!("<dl>\n{}</dl>\n", list.0))
}

pub(super) fn command(command: Option<&str>) -> String {
    let word = |word: &str| format!("<span>{}</span>", escape(word));
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    let lines = |text: &str| text.split('\n').map(line).collect::<Vec<_>>().join("\n");
    let html = command.map(|command| format!("<pre><code>{}</code></pre>\n", lines(command)));
    parts::section("command", "To reproduce this", &html.unwrap_or_default())
}

/// Options of a sampler that have a row of their own, and those that change no sample.
const SAMPLER_ELSEWHERE: [&str; 4] = ["sampler", "sampling_timesteps", "num_samples", "sample_batch_size"];

/// Names and their values, as HTML.
#[derive(Default)]
struct List(String);

impl List {
    fn html(&mut self, name: &str, html: &str) -> &mut Self {
        self.0.push_str(&format!("<div><dt>{}</dt><dd>{html}</dd></div>\n", escape(name)));
        self
    }

    fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.html(name, &escape(text))
    }

    /// The options that differ from their defaults, except those shown elsewhere.
    fn changed<T: Serialize + Default>(&mut self, name: &str, options: Option<&T>, elsewhere: &[&str]) {
        let table = |options: &T| match serde_json::to_value(options) {
            Ok(Value::Object(table)) => table,
            _ => Map::new(),
        };
        let defaults = table(&T::default());
        let differs = |(key, value): &(String, Value)| *value != *defaults.get(key).unwrap_or(&Value::Null);
        let shown = |(key, value): (String, Value)| match value {
            Value::String(word) => format!("{key} {word}"),
            value => format!("{key} {value}"),
        };
        let own = options.map(table).unwrap_or_default().into_iter();
        let own: Vec<String> =
            own.filter(|(key, _)| !elsewhere.contains(&key.as_str())).filter(differs).map(shown).collect();
        if !own.is_empty() {
            self.text(name, &own.join(", "));
        }
    }

    /// The digest is there in full and is selected with one click; the style shows only its beginning.
    fn digest(&mut self, name: &str, digest: &str) -> &mut Self {
        let digest = escape(digest);
        self.html(name, &format!("<code class=\"digest\" title=\"{digest}\">{digest}</code>"))
    }

    fn sampling(&mut self, sampling: &Sampling) {
        let Sampling { sampler, steps, evaluations, weights, step, ema_decay, ema_sigma_rel, .. } = sampling;
        let counted = |n: usize, what: &str| format!("{} {what}{}", thousands(n as u64), if n == 1 { "" } else { "s" });
        let evaluations = evaluations
            .map(|n| format!(", {} of the network per sample", counted(n, "evaluation")))
            .unwrap_or_default();
        self.text("sampler", &format!("{sampler}, {}{evaluations}", counted(*steps, "step")));
        self.changed("sampler options", sampling.options.as_ref(), &SAMPLER_ELSEWHERE);
        // At scale 1, CFG++ guides, too.
        let guides = |guidance: &&GuidanceConfig| guidance.guidance != 1.0 || guidance.cfg_plus_plus;
        if let Some(guidance) = sampling.guidance.as_ref().filter(guides) {
            let away = sampling.weak.as_ref().map(|weak| format!(", away from {weak}")).unwrap_or_default();
            self.text("guidance", &format!("{}{away}", guidance.guidance));
        }
        self.changed("guidance options", sampling.guidance.as_ref(), &["guidance"]);
        if let Some((classifier, scale)) = &sampling.classifier {
            self.text("classifier", &format!("{classifier}, scale {scale}"));
        }
        if let Some(classes) = &sampling.classes {
            self.text("classes", &classes.iter().map(u32::to_string).collect::<Vec<_>>().join(", "));
        }
        for (name, from) in [("conditions", &sampling.condition), ("vectors", &sampling.vectors)] {
            if let Some(from) = from {
                self.text(name, from);
            }
        }
        let decay = ema_decay.map(|decay| format!(", decay {decay:.6}")).unwrap_or_default();
        let length = ema_sigma_rel.map(|sigma_rel| format!(", sigma_rel {sigma_rel}")).unwrap_or_default();
        self.text("weights", &format!("{weights}{decay}{length}")).text("training steps", &thousands(*step));
    }

    fn extractor(&mut self, extractor: &Extractor) {
        let Extractor { name, dims, digest, preprocessing } = extractor;
        self.text("features", &format!("{name}, {} dimensions", thousands(*dims as u64)))
            .text("preprocessing", preprocessing)
            .digest("SHA-256 of the extractor", digest);
    }
}
