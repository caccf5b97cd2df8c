//! The report's words, in English and in German. What a comparison found has its words in
//! [`crate::compare::finding`]. What the tracker says of a figure's origin (sources, notes) stays in English in both, as it is on the card.

use clap::ValueEnum;
use serde::Serialize;

/// The language of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// English
    En,
    /// German
    De,
}

/// Every word of the page.
#[derive(Debug, Serialize)]
pub(super) struct Words {
    pub(super) code: &'static str,
    pub(super) report: &'static str,
    pub(super) skip: &'static str,
    pub(super) runs: &'static str,
    pub(super) overview: &'static str,
    pub(super) run: &'static str,
    pub(super) time: &'static str,
    pub(super) energy: &'static str,
    pub(super) emissions: &'static str,
    pub(super) loss: &'static str,
    pub(super) held_out: &'static str,
    pub(super) exact_match: &'static str,
    pub(super) accuracy: &'static str,
    pub(super) macro_f1: &'static str,
    pub(super) speed: &'static str,
    pub(super) memory: &'static str,
    pub(super) gpu_memory: &'static str,
    pub(super) model: &'static str,
    pub(super) method: &'static str,
    pub(super) hardware: &'static str,
    pub(super) measured: &'static str,
    pub(super) numbers: &'static str,
    pub(super) provenance: &'static str,
    pub(super) component: &'static str,
    pub(super) how: &'static str,
    pub(super) source: &'static str,
    pub(super) range: &'static str,
    pub(super) formula: &'static str,
    pub(super) contains: &'static str,
    pub(super) not_included: &'static str,
    pub(super) beside: &'static str,
    pub(super) notes: &'static str,
    pub(super) step: &'static str,
    pub(super) training: &'static str,
    pub(super) evaluation: &'static str,
    pub(super) power: &'static str,
    pub(super) watts: &'static str,
    pub(super) phase: &'static str,
    pub(super) phases: &'static str,
    pub(super) cumulative: &'static str,
    pub(super) among: &'static str,
    pub(super) among_about: &'static str,
    pub(super) this_run: &'static str,
    pub(super) published: &'static str,
    pub(super) compared: &'static str,
    pub(super) compared_time: &'static str,
    pub(super) compared_memory: &'static str,
    pub(super) compared_memory_about: &'static str,
    pub(super) compared_size: &'static str,
    pub(super) compared_size_about: &'static str,
    pub(super) arms_about: &'static str,
    pub(super) size: &'static str,
    pub(super) advice: &'static str,
    pub(super) models: &'static str,
    pub(super) models_about: &'static str,
    pub(super) parameters: &'static str,
    pub(super) year: &'static str,
    pub(super) with_emissions: &'static str,
    pub(super) without_emissions: &'static str,
    pub(super) pareto: &'static str,
    pub(super) loss_curve: &'static str,
    pub(super) loss_about: &'static str,
    pub(super) power_about: &'static str,
    pub(super) phases_about: &'static str,
    pub(super) cumulative_about: &'static str,
    pub(super) compared_about: &'static str,
    pub(super) pareto_about: &'static str,
    pub(super) from: &'static str,
    pub(super) resumed: &'static str,
    pub(super) no_place: &'static str,
    pub(super) states: [&'static str; 4],
    pub(super) state: &'static str,
    pub(super) made_by: &'static str,
    pub(super) value: &'static str,
    pub(super) before_to_after: &'static str,
    pub(super) budget: &'static str,
}

const ENGLISH: Words = Words {
    code: "en",
    report: "What this training achieved and what it cost",
    skip: "Skip to the content",
    runs: "Runs",
    overview: "Overview",
    run: "Run",
    time: "Time",
    energy: "Energy",
    emissions: "Emissions",
    loss: "Loss",
    held_out: "Loss on held-out data",
    exact_match: "Exact match",
    accuracy: "Accuracy",
    macro_f1: "Macro F1",
    speed: "Speed",
    memory: "Peak memory",
    gpu_memory: "Peak memory of the GPU",
    model: "Model",
    method: "Method",
    hardware: "Hardware",
    measured: "measured",
    numbers: "The numbers of this picture",
    provenance: "Where the figures come from",
    component: "Component",
    how: "How",
    source: "Source",
    range: "Range",
    formula: "Emissions are",
    contains: "Contains",
    not_included: "Not included",
    beside: "Beside that figure and not in it",
    notes: "Notes",
    step: "Step",
    training: "training",
    evaluation: "evaluation",
    power: "Power over time",
    watts: "Power, W",
    phase: "Phase",
    phases: "Energy by phase",
    cumulative: "Emissions so far",
    among: "Among published models",
    among_about: "Each step to the right is ten times as much. The values do not all count the same things; the table says what each one holds and who published it.",
    this_run: "this report",
    published: "Published value",
    compared: "Energy, side by side",
    compared_time: "Time, side by side",
    compared_memory: "Memory, side by side",
    compared_memory_about: "The most memory that the process held; where a run was repeated, the highest.",
    compared_size: "Size of what is published, side by side",
    compared_size_about: "The file with the trained weights: an adapter, or the whole model.",
    arms_about: "Bars show the mean over the repeats, thin lines the least and the most. Loading, evaluation and answers are in it.",
    size: "Size",
    advice: "What follows",
    models: "Published models and their emissions",
    models_about: "Known models by year and size. A filled mark means that somebody has published what training it emitted; the table says who.",
    parameters: "Parameters",
    year: "Year",
    with_emissions: "emissions published",
    without_emissions: "none published",
    pareto: "Quality and energy",
    loss_curve: "Loss",
    loss_about: "Mean loss in nats for each token, or each text that is classified; lower is better. The thick line is the training loss, averaged over neighbouring steps; the marks are the evaluation data.",
    power_about: "Mean power between two lines of the energy journal, the components on top of each other.",
    phases_about: "A phase inside another is part of it, so the bars do not add up.",
    cumulative_about: "Central figure, and the range within which the truth is expected.",
    compared_about: "Bars show the central figure, thin lines its range. Runs measured by different methods are not comparable to the last digit.",
    pareto_about: "Lower and further left is better. The line joins the runs that no other beats in both.",
    from: "from",
    resumed: "resumed",
    no_place: "No country was given, so there is a range over all countries and no single figure.",
    states: ["running or killed", "interrupted", "failed", "finished"],
    state: "State",
    made_by: "Made by sparsam",
    value: "Value",
    before_to_after: "before and after",
    budget: "Budget",
};

const GERMAN: Words = Words {
    code: "de",
    report: "Was dieses Training erreicht und was es gekostet hat",
    skip: "Zum Inhalt springen",
    runs: "Läufe",
    overview: "Überblick",
    run: "Lauf",
    time: "Dauer",
    energy: "Energie",
    emissions: "Emissionen",
    loss: "Verlust",
    held_out: "Verlust auf zurückgehaltenen Daten",
    exact_match: "Genau richtig",
    accuracy: "Treffer",
    macro_f1: "Makro-F1",
    speed: "Tempo",
    memory: "Höchster Speicherbedarf",
    gpu_memory: "Höchster Speicherbedarf der GPU",
    model: "Modell",
    method: "Verfahren",
    hardware: "Hardware",
    measured: "gemessen",
    numbers: "Die Zahlen dieses Bildes",
    provenance: "Woher die Zahlen kommen",
    component: "Bauteil",
    how: "Wie",
    source: "Quelle",
    range: "Spanne",
    formula: "Die Emissionen sind",
    contains: "Enthält",
    not_included: "Nicht enthalten",
    beside: "Neben dieser Zahl und nicht in ihr",
    notes: "Anmerkungen",
    step: "Schritt",
    training: "Training",
    evaluation: "Auswertung",
    power: "Leistung über die Zeit",
    watts: "Leistung, W",
    phase: "Phase",
    phases: "Energie nach Phasen",
    cumulative: "Emissionen bis dahin",
    among: "Unter veröffentlichten Modellen",
    among_about: "Jeder Schritt nach rechts ist zehnmal so viel. Die Werte zählen nicht alle dasselbe; die Tabelle sagt, was jeder enthält und wer ihn veröffentlicht hat.",
    this_run: "dieser Bericht",
    published: "Veröffentlichter Wert",
    compared: "Energie im Vergleich",
    compared_time: "Dauer im Vergleich",
    compared_memory: "Speicherbedarf im Vergleich",
    compared_memory_about: "Der meiste Speicher, den der Prozess belegt hat; bei Wiederholungen der höchste Wert.",
    compared_size: "Größe des Ergebnisses im Vergleich",
    compared_size_about: "Die Datei mit den trainierten Gewichten: ein Adapter oder das ganze Modell.",
    arms_about: "Balken zeigen das Mittel der Wiederholungen, dünne Linien das wenigste und das meiste. Laden, Auswertung und Antworten sind darin.",
    size: "Größe",
    advice: "Was daraus folgt",
    models: "Veröffentlichte Modelle und ihre Emissionen",
    models_about: "Bekannte Modelle nach Jahr und Größe. Ein gefüllter Punkt heißt: jemand hat veröffentlicht, was das Training ausgestoßen hat; die Tabelle sagt, wer.",
    parameters: "Parameter",
    year: "Jahr",
    with_emissions: "Emissionen veröffentlicht",
    without_emissions: "keine veröffentlicht",
    pareto: "Güte und Energie",
    loss_curve: "Verlust",
    loss_about: "Mittlerer Verlust in Nat je Token oder je eingeordnetem Text; weniger ist besser. Die dicke Linie ist der Verlust im Training, über benachbarte Schritte gemittelt; die Punkte sind die Auswertungsdaten.",
    power_about: "Mittlere Leistung zwischen zwei Zeilen des Energieprotokolls, die Bauteile übereinander.",
    phases_about: "Eine Phase in einer anderen ist ein Teil von ihr; die Balken ergeben keine Summe.",
    cumulative_about: "Der mittlere Wert und die Spanne, in der der wahre erwartet wird.",
    compared_about: "Balken zeigen den mittleren Wert, dünne Linien seine Spanne. Verschieden gemessene Läufe sind nicht bis auf die letzte Stelle vergleichbar.",
    pareto_about: "Weiter unten und weiter links ist besser. Die Linie verbindet die Läufe, die kein anderer in beidem schlägt.",
    from: "von",
    resumed: "fortgesetzt",
    no_place: "Es wurde kein Land angegeben, daher gibt es eine Spanne über alle Länder und keine einzelne Zahl.",
    states: [
        "läuft oder abgebrochen",
        "unterbrochen",
        "gescheitert",
        "beendet",
    ],
    state: "Zustand",
    made_by: "Erstellt mit sparsam",
    value: "Wert",
    before_to_after: "vorher und nachher",
    budget: "Budget",
};

impl Language {
    pub(super) fn words(self) -> &'static Words {
        match self {
            Self::En => &ENGLISH,
            Self::De => &GERMAN,
        }
    }

    /// `3 to 5` in this language, its numbers as they are.
    pub(super) fn joined(self, bounds: &str) -> String {
        match self {
            Self::En => bounds.to_owned(),
            Self::De => bounds.replace(" to ", " bis "),
        }
    }

    /// A figure as the tracker words it, `12.3 Wh (9.1 to 16)`, in this language.
    pub(crate) fn figure(self, english: &str) -> String {
        match self {
            Self::En => english.to_owned(),
            // Thousands are joined by commas and decimals by points, and here the other way round; a mark
            // before anything but a digit belongs to the sentence.
            Self::De => {
                let next = english.chars().skip(1).chain([' ']);
                english
                    .chars()
                    .zip(next)
                    .map(|pair| match pair {
                        ('.', '0'..='9') => ',',
                        (',', '0'..='9') => '.',
                        (c, _) => c,
                    })
                    .collect::<String>()
                    .replace(" to ", " bis ")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_they_are_read_here() {
        let english = "12.3 Wh (9.1 to 16), 1,234 tokens";
        assert_eq!(Language::En.figure(english), english);
        assert_eq!(
            Language::De.figure(english),
            "12,3 Wh (9,1 bis 16), 1.234 tokens"
        );
    }

    /// A word that was forgotten would be the English one.
    #[test]
    fn german_is_german() {
        let (en, de) = (
            serde_json::to_value(Language::En.words()).unwrap(),
            serde_json::to_value(Language::De.words()).unwrap(),
        );
        let same: Vec<&String> = en
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, word)| de[*key] == **word)
            .map(|(key, _)| key)
            .collect();
        assert_eq!(same, ["hardware", "phase", "budget"]);
    }
}
