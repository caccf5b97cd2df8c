//! Values that have the right type and still cannot be meant.
//!
//! Run once, after which a recipe is trusted. Everything that needs files or the model (does the
//! data exist, do the targets match) is checked where it is read.

use sparsam_hub::grid::Grid;

use super::tree::{Node, Origin, Problem};
use super::{BestMetric, DataFormat, Energy, Method, Quantize, Recipe, TargetModules, Task};
use crate::device::Choice;
use crate::grid;

/// Refuses the first impossible value, and settles which of two exclusive keys holds.
pub(super) fn check(recipe: &mut Recipe, tree: &Node) -> Result<(), Problem> {
    let check = Check { tree };
    check.required(recipe)?;
    check.exclusive(recipe)?;
    check.method(recipe)?;
    check.lora(recipe)?;
    check.sizes(recipe)?;
    check.optimiser(recipe)?;
    check.evaluation(recipe)?;
    check.task(recipe)?;
    check.budget(recipe)?;
    check.energy(recipe)
}

/// Keys that mean nothing to a classifier.
fn classifies(check: &Check, recipe: &Recipe) -> Result<(), Problem> {
    let keys = [
        ("packing", check.given("packing") && recipe.packing),
        ("eval_generation", recipe.eval_generation.is_some()),
        ("chat_template", recipe.chat_template.is_some()),
        ("data.format", recipe.data.format != DataFormat::Auto),
        ("data.train_on", check.given("data.train_on")),
        ("data.prompt_format", check.given("data.prompt_format")),
    ];
    match keys.iter().find(|(_, used)| *used) {
        None => Ok(()),
        Some((key, _)) => Err(Problem::new(
            check.origin(key),
            format!("`{key}` means nothing where texts are classified"),
        )
        .hint("leave it out; a row is a text with a label")),
    }
}

/// The same for a recipe whose `task: auto` came to be classification.
pub(crate) fn classifies_quietly(recipe: &Recipe) -> Option<&'static str> {
    [
        ("eval_generation", recipe.eval_generation.is_some()),
        ("chat_template", recipe.chat_template.is_some()),
        ("data.format", recipe.data.format != DataFormat::Auto),
    ]
    .into_iter()
    .find_map(|(key, used)| used.then_some(key))
}

struct Check<'a> {
    tree: &'a Node,
}

impl Check<'_> {
    fn origin(&self, key: &str) -> Origin {
        self.tree
            .find(key)
            .map_or(Origin::Whole, |node| node.origin.clone())
    }

    fn given(&self, key: &str) -> bool {
        self.tree.find(key).is_some()
    }

    fn refuse(&self, key: &str, rule: &str) -> Problem {
        let found = self
            .tree
            .find(key)
            .map_or_else(|| "the default".to_owned(), Node::describe);
        Problem::new(
            self.origin(key),
            format!("`{key}` must be {rule}, not {found}"),
        )
    }

    /// Fails unless `holds`; `rule` completes "must be".
    fn must(&self, holds: bool, key: &str, rule: &str) -> Result<(), Problem> {
        if holds {
            Ok(())
        } else {
            Err(self.refuse(key, rule))
        }
    }

    fn required(&self, recipe: &Recipe) -> Result<(), Problem> {
        if recipe.model.trim().is_empty() {
            return Err(Problem::new(
                self.origin("model"),
                "`model` is missing: the recipe names no base model",
            )
            .hint("add `model:` with a folder, or `model: builtin:sprout` to try things out"));
        }
        if recipe.data.train.as_os_str().is_empty() {
            return Err(Problem::new(
                self.origin("data.train"),
                "`data.train` is missing: the recipe names nothing to learn from",
            )
            .hint("add `data: {train: my-data.jsonl}`"));
        }
        if recipe.output_dir.as_os_str().is_empty() {
            return Err(Problem::new(
                self.origin("output_dir"),
                "`output_dir` is empty",
            ));
        }
        Ok(())
    }

    fn exclusive(&self, recipe: &mut Recipe) -> Result<(), Problem> {
        if self.given("epochs") && self.given("max_steps") {
            return Err(Problem::new(
                self.origin("max_steps"),
                "`epochs` and `max_steps` both say how long to train",
            )
            .hint("keep one of them"));
        }
        if self.given("warmup_ratio") && self.given("warmup_steps") {
            return Err(Problem::new(
                self.origin("warmup_steps"),
                "`warmup_ratio` and `warmup_steps` both say how long to warm up",
            )
            .hint("keep one of them"));
        }
        let default = Recipe::default();
        recipe.epochs = match recipe.max_steps {
            Some(_) => None,
            None => recipe.epochs.or(default.epochs),
        };
        recipe.warmup_ratio = match recipe.warmup_steps {
            Some(_) => None,
            None => recipe.warmup_ratio.or(default.warmup_ratio),
        };
        Ok(())
    }

    fn method(&self, recipe: &Recipe) -> Result<(), Problem> {
        if recipe.method == Method::Full && recipe.quantize != Quantize::None {
            return Err(Problem::new(
                self.origin("quantize"),
                "`method: full` trains every weight, which a quantised base does not allow",
            )
            .hint("write `quantize: none`, or `method: lora`"));
        }
        if recipe.method == Method::Full && crate::opened::is_gguf(&recipe.model) {
            return Err(Problem::new(
                self.origin("model"),
                "`method: full` trains every weight, which a GGUF file does not allow",
            )
            .hint("write `method: lora`, or name the model's folder in Hugging Face's layout"));
        }
        if recipe.method == Method::Full && recipe.adapter.is_some() {
            return Err(Problem::new(
                self.origin("adapter"),
                "`adapter` continues an adapter, but `method: full` trains none",
            )
            .hint("write `method: lora`, or leave `adapter` out"));
        }
        Ok(())
    }

    fn lora(&self, recipe: &Recipe) -> Result<(), Problem> {
        let lora = &recipe.lora;
        self.must(lora.r >= 1, "lora.r", "1 or more")?;
        self.must(lora.alpha > 0.0, "lora.alpha", "greater than 0")?;
        self.must(
            lora.loraplus_lr_ratio > 0.0 && lora.loraplus_lr_ratio.is_finite(),
            "lora.loraplus_lr_ratio",
            "greater than 0",
        )?;
        self.must(
            (0.0..1.0).contains(&lora.dropout),
            "lora.dropout",
            "a share of at least 0 and below 1",
        )?;
        self.must(
            lora.rank_pattern.values().all(|&rank| rank >= 1),
            "lora.rank_pattern",
            "ranks of 1 or more",
        )?;
        self.must(
            lora.alpha_pattern.values().all(|&alpha| alpha > 0.0),
            "lora.alpha_pattern",
            "values greater than 0",
        )?;
        let empty = |targets: &TargetModules| match targets {
            TargetModules::AllLinear => false,
            TargetModules::List(names) => names.is_empty(),
            TargetModules::Regex(expression) => expression.is_empty(),
        };
        if empty(&lora.target_modules) {
            return Err(Problem::new(
                self.origin("lora.target_modules"),
                "`lora.target_modules` names nothing to adapt",
            )
            .hint("write `all-linear`, or a list such as `[q_proj, v_proj]`"));
        }
        if lora.layers_pattern.is_some() && lora.layers_to_transform.is_none() {
            return Err(Problem::new(
                self.origin("lora.layers_pattern"),
                "`lora.layers_pattern` says where the layers are, but not which are meant",
            )
            .hint("add `layers_to_transform`, or leave `layers_pattern` out"));
        }
        if lora.layers_to_transform.is_some()
            && matches!(lora.target_modules, TargetModules::Regex(_))
        {
            return Err(Problem::new(
                self.origin("lora.layers_to_transform"),
                "`lora.layers_to_transform` needs a list in `lora.target_modules`, not a regular expression",
            )
            .hint("put the layers into the expression, or list the names"));
        }
        Ok(())
    }

    fn sizes(&self, recipe: &Recipe) -> Result<(), Problem> {
        self.must(recipe.max_length >= 2, "max_length", "2 tokens or more")?;
        self.must(
            recipe.epochs.is_none_or(|epochs| epochs > 0.0),
            "epochs",
            "greater than 0",
        )?;
        self.must(recipe.max_steps != Some(0), "max_steps", "1 or more")?;
        self.must(recipe.batch_size >= 1, "batch_size", "1 or more")?;
        self.must(
            recipe.gradient_accumulation_steps >= 1,
            "gradient_accumulation_steps",
            "1 or more",
        )?;
        self.must(recipe.threads != Some(0), "threads", "1 or more")?;
        self.must(
            recipe.device.parse::<Choice>().is_ok(),
            "device",
            "`auto`, `cpu`, or `cuda:0` with the number of a GPU",
        )?;
        self.must(recipe.logging.steps >= 1, "logging.steps", "1 or more")
    }

    fn budget(&self, recipe: &Recipe) -> Result<(), Problem> {
        let Some(budget) = recipe.budget else {
            return Ok(());
        };
        let limits = [
            ("budget.kwh", budget.kwh),
            ("budget.gco2e", budget.gco2e),
            ("budget.minutes", budget.minutes),
        ];
        if limits.iter().all(|(_, limit)| limit.is_none()) {
            return Err(
                Problem::new(self.origin("budget"), "`budget` names no limit")
                    .hint("write `budget: {kwh: 0.05}`, `{gco2e: 20}` or `{minutes: 30}`"),
            );
        }
        for (key, limit) in limits {
            if !limit.is_none_or(|limit| limit.is_finite() && limit > 0.0) {
                return Err(self
                    .refuse(key, "greater than 0")
                    .hint("leave `budget` out to train without a limit"));
            }
        }
        Ok(())
    }

    fn optimiser(&self, recipe: &Recipe) -> Result<(), Problem> {
        self.must(
            recipe.learning_rate > 0.0,
            "learning_rate",
            "greater than 0",
        )?;
        if recipe.learning_rate >= 1.0 {
            return Err(self
                .refuse("learning_rate", "below 1")
                .hint("a usual value for LoRA is `2e-4`"));
        }
        let share = 0.0..=1.0;
        self.must(
            recipe
                .warmup_ratio
                .is_none_or(|ratio| share.contains(&ratio)),
            "warmup_ratio",
            "a share from 0 to 1",
        )?;
        self.must(
            share.contains(&recipe.min_lr_ratio),
            "min_lr_ratio",
            "a share from 0 to 1",
        )?;
        self.must(recipe.weight_decay >= 0.0, "weight_decay", "0 or more")?;
        let beta = 0.0..1.0;
        self.must(
            beta.contains(&recipe.adam_beta1),
            "adam_beta1",
            "at least 0 and below 1",
        )?;
        self.must(
            beta.contains(&recipe.adam_beta2),
            "adam_beta2",
            "at least 0 and below 1",
        )?;
        self.must(recipe.adam_epsilon > 0.0, "adam_epsilon", "greater than 0")?;
        self.must(recipe.max_grad_norm >= 0.0, "max_grad_norm", "0 or more")
    }

    fn task(&self, recipe: &Recipe) -> Result<(), Problem> {
        let language = recipe.task == Task::CausalLm;
        let keys = [
            (
                "metric_for_best_model",
                recipe.metric_for_best_model == BestMetric::MacroF1,
            ),
            ("data.label_field", recipe.data.label_field.is_some()),
            ("data.columns.label", recipe.data.columns.label.is_some()),
        ];
        if let Some((key, _)) = keys.iter().find(|(_, used)| *used && language) {
            return Err(Problem::new(
                self.origin(key),
                format!("`{key}` is about classes, but `task: causal_lm` knows none"),
            )
            .hint("write `task: classification`, or leave the key out"));
        }
        if recipe.metric_for_best_model == BestMetric::MacroF1 && recipe.data.eval.is_none() {
            return Err(Problem::new(
                self.origin("metric_for_best_model"),
                "`metric_for_best_model` needs evaluation data",
            )
            .hint("add `data.eval`, a file of examples that are not trained on"));
        }
        if recipe.task == Task::Classification {
            return classifies(self, recipe);
        }
        Ok(())
    }

    fn evaluation(&self, recipe: &Recipe) -> Result<(), Problem> {
        for (key, used) in [
            ("eval_generation", recipe.eval_generation.is_some()),
            ("early_stopping", recipe.early_stopping.is_some()),
        ] {
            if used && recipe.data.eval.is_none() {
                return Err(Problem::new(
                    self.origin(key),
                    format!("`{key}` needs evaluation data"),
                )
                .hint("add `data.eval`, a file of examples that are not trained on"));
            }
        }
        if let Some(generation) = &recipe.eval_generation {
            self.must(
                generation.samples != Some(0),
                "eval_generation.samples",
                "1 or more",
            )?;
            self.must(
                generation.max_new_tokens >= 1,
                "eval_generation.max_new_tokens",
                "1 or more",
            )?;
        }
        if let Some(stopping) = &recipe.early_stopping {
            self.must(
                stopping.patience >= 1,
                "early_stopping.patience",
                "1 or more",
            )?;
            self.must(
                stopping.min_delta >= 0.0,
                "early_stopping.min_delta",
                "0 or more",
            )?;
            if recipe.eval_steps == super::Cadence::Never {
                return Err(Problem::new(
                    self.origin("eval_steps"),
                    "`early_stopping` has nothing to go by with `eval_steps: never`",
                )
                .hint("write `eval_steps: epoch` or a number of steps"));
            }
        }
        Ok(())
    }

    fn start(&self, energy: &Energy) -> Result<(), Problem> {
        if let Some(source) = &energy.live_intensity
            && let Err(what) = Grid::parse(source)
        {
            let origin = self.origin("energy.live_intensity");
            return Err(
                Problem::new(origin, format!("`energy.live_intensity` {what}"))
                    .hint(format!("write {}", grid::SOURCES)),
            );
        }
        let Some(start) = energy.start_when else {
            return Ok(());
        };
        if energy.live_intensity.is_none() {
            return Err(Problem::new(
                self.origin("energy.start_when"),
                "`energy.start_when` waits for a clean grid, and nothing says how clean it is",
            )
            .hint("add `energy.live_intensity`, such as `uk-grid` or `electricity-maps:DE`"));
        }
        self.must(
            start.intensity_below > 0.0,
            "energy.start_when.intensity_below",
            "greater than 0",
        )?;
        self.must(
            start.within_hours > 0.0 && start.within_hours <= 168.0,
            "energy.start_when.within_hours",
            "more than 0 and up to 168",
        )
    }

    /// The emissions are of one grid.
    fn one_grid(&self, recipe: &Recipe) -> Result<(), Problem> {
        let energy = &recipe.energy;
        let Some(grid) = recipe.live_grid() else {
            return Ok(());
        };
        if energy.intensity_g_per_kwh.is_some() && energy.start_when.is_none() {
            return Err(Problem::new(
                self.origin("energy.live_intensity"),
                "`energy.live_intensity` and `energy.intensity_g_per_kwh` both say what the electricity emits",
            )
            .hint("leave out one of them, or add `energy.start_when` for which the live one is asked"));
        }
        match grid::elsewhere(&grid, recipe.country.as_deref()) {
            None => Ok(()),
            Some((of_grid, of_run)) => Err(Problem::new(
                self.origin("energy.live_intensity"),
                format!(
                    "`energy.live_intensity` is of the grid of {}, and `country` is {}",
                    of_grid.name, of_run.name
                ),
            )
            .hint("name the zone in which the machine stands, or leave `country` out")),
        }
    }

    fn energy(&self, recipe: &Recipe) -> Result<(), Problem> {
        let energy = &recipe.energy;
        self.must(
            recipe.country.as_ref().is_none_or(|place| {
                place.trim().len() >= 2 && place.chars().any(char::is_alphabetic)
            }),
            "country",
            "an ISO code such as `DEU` or a name",
        )?;
        self.one_grid(recipe)?;
        self.must(
            energy.intensity_g_per_kwh.is_none_or(|grams| grams >= 0.0),
            "energy.intensity_g_per_kwh",
            "0 or more",
        )?;
        match (energy.intensity_g_per_kwh, &energy.intensity_source) {
            (Some(_), None) => {
                return Err(Problem::new(
                    self.origin("energy.intensity_g_per_kwh"),
                    "`energy.intensity_g_per_kwh` is a figure without a source",
                )
                .hint("add `energy.intensity_source` with where it comes from and its year"));
            }
            (None, Some(_)) => {
                return Err(Problem::new(
                    self.origin("energy.intensity_source"),
                    "`energy.intensity_source` has no figure beside it",
                )
                .hint("add `energy.intensity_g_per_kwh`"));
            }
            _ => {}
        }
        self.must(
            energy.pue >= 1.0,
            "energy.pue",
            "1 or more (a site uses no less than its computers)",
        )?;
        self.must(
            energy.cpu_watts.is_none_or(|watts| watts > 0.0),
            "energy.cpu_watts",
            "greater than 0",
        )?;
        self.must(
            energy.ram_watts.is_none_or(|watts| watts > 0.0),
            "energy.ram_watts",
            "greater than 0",
        )?;
        self.must(
            energy.node_idle_watts.is_none_or(|watts| watts > 0.0),
            "energy.node_idle_watts",
            "greater than 0",
        )?;
        self.must(
            (0.0..=3600.0).contains(&energy.baseline_seconds),
            "energy.baseline_seconds",
            "from 0 to 3600 seconds",
        )?;
        for (key, litres) in [
            ("energy.water_site_l_per_kwh", energy.water_site_l_per_kwh),
            ("energy.water_grid_l_per_kwh", energy.water_grid_l_per_kwh),
        ] {
            self.must(
                litres.is_none_or(|litres| (0.0..=1000.0).contains(&litres)),
                key,
                "from 0 to 1000 litres",
            )?;
        }
        self.start(energy)?;
        self.must(
            (0.05..=60.0).contains(&energy.interval_seconds),
            "energy.interval_seconds",
            "from 0.05 to 60 seconds",
        )
    }
}
