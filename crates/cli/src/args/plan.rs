//! What is typed for `plan`.

use std::path::PathBuf;

use clap::Args;

use super::energy::PlaceArgs;

/// Say what a recipe will need before it runs: memory, time, energy, emissions
///
/// Beside the recipe stand full training, LoRA, and LoRA on four bits. On this machine a few real steps
/// are made for each, in a process of its own, and kept for the next time. What does not fit is not
/// started: `*` marks what is taken from another arm, `!` what does not fit, and the changes that would
/// make it fit are listed with what each saves and costs. For other hardware all of it is arithmetic,
/// marked `+`, with a wide range.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam plan configs/quickstart.yaml\n  \
    sparsam plan configs/quickstart.yaml lora.r=64 --memory 2GB\n  \
    sparsam plan configs/qlora-7b.yaml --hardware \"RTX 4090\" --country DEU")]
pub(crate) struct PlanArgs {
    /// The recipe, a YAML file
    pub(crate) recipe: PathBuf,

    /// Keys to change, such as `lora.r=32`; values are read as YAML
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    /// Plan for this device in place of this machine, as its data sheet calls it
    #[arg(long, value_name = "NAME")]
    pub(crate) hardware: Option<String>,

    /// The memory that may be used, such as 12GB; what there is by default
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<f64>,

    /// Seconds of steps that are made for each arm
    #[arg(long, value_name = "SECONDS", default_value_t = 6.0, value_parser = super::energy::seconds)]
    pub(crate) seconds: f64,

    /// Make the steps again although they were made before
    #[arg(long)]
    pub(crate) fresh: bool,

    /// Where the run will be made; what the recipe says by default
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Print the plan with all its figures as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a few steps of a recipe and print what they took, as JSON
///
/// What `plan` runs for each arm.
#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// The recipe
    pub(crate) recipe: PathBuf,

    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    #[arg(long, default_value_t = 6.0, value_parser = super::energy::seconds)]
    pub(crate) seconds: f64,
}

/// `12GB`, `800 MB`, `16GiB`.
fn size(text: &str) -> Result<f64, String> {
    let wrong = || "expected a size such as 12GB or 800MB".to_owned();
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(wrong)?;
    let value: f64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        _ => return Err(wrong()),
    };
    if value > 0.0 {
        Ok(value * unit)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_read_as_they_are_written() {
        assert_eq!(super::size("12GB"), Ok(12e9));
        assert_eq!(super::size("1.5 gib"), Ok(1.5 * 1_073_741_824.0));
        for wrong in ["12", "GB", "-1GB", "0MB", "1 2GB", "12 apples"] {
            assert!(super::size(wrong).is_err(), "{wrong}");
        }
    }
}
