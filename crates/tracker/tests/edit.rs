//! Editing cards: every byte that is not ours stays, whatever the card is like. With `SPARSAM_SHARED` set
//! the real cards under it are edited too.

mod common;

use std::fs;

use common::record;
use proptest::prelude::*;
use serde_json::Value;
use sparsam_tracker::card::edit::{
    CardError, Details, EditError, Outcome, remove, update, update_file,
};
use sparsam_tracker::{EnergyRecord, StatedIntensity};

fn records() -> Vec<EnergyRecord> {
    vec![record(Some("DEU"))]
}

fn updated(card: &str) -> String {
    let bytes = update(card.as_bytes(), &records(), &Details::default())
        .unwrap_or_else(|error| panic!("{card:?}: {error}"));
    String::from_utf8(bytes).unwrap()
}

fn front_matter(card: &str) -> Value {
    let card = card.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let (_, rest) = card.split_once("---\n").unwrap();
    let (yaml, _) = rest.split_once("\n---").unwrap();
    serde_saphyr::from_str(yaml).unwrap()
}

/// Update, update again, remove.
fn round_trip(card: &str) {
    let edited = updated(card);
    assert_eq!(updated(&edited), edited, "a second update changed {card:?}");
    let back = remove(edited.as_bytes()).unwrap();
    assert_eq!(
        String::from_utf8(back).unwrap(),
        card,
        "removed from\n{edited}"
    );
}

#[test]
fn cards_of_every_shape_come_back_byte_for_byte() {
    for card in [
        "",
        "\n",
        "# Title",
        "# Title\n",
        "# Title\n\n\n",
        "\n\nText after blank lines\n",
        "---\nlicense: mit\n---\n",
        "---\nlicense: mit\n---",
        "---\nlicense: mit\n---\n# Title\n\nText",
        "---\nlicense: mit  # why\n\n# a comment\ntags: ['a', \"b\"]\n---\n\n# Title\n",
        "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n# Title\r\n",
        "\u{feff}---\nlicense: mit\n---\n# Title\n",
        "\u{feff}# Title\n",
        "\u{feff}",
        "---\nwidget:\n- text: |\n    co2_eq_emissions: 3\n    ---x\n\n---\nText\n",
        "---\n# only a comment\n---\nText\n",
        "---\n---\nText\n",
        "---\ntext: >-\n  folded\n  over lines\n---\n```\n# code\n---\n```\n",
        "# Title\r\n\r\nmixed\nends\r",
        "---\nanchors: &a [1, 2]\nagain: *a\n---\nx\n",
        "---\nlanguage:\n- no\ndate: 2024-01-01\nn: 1e3\n---\nx\n",
    ] {
        round_trip(card);
    }
}

#[test]
fn the_block_stands_where_the_hub_reads_it() {
    for card in [
        "# Title\n",
        "---\nlicense: mit\n---\n# Title\n",
        "\u{feff}---\r\na: b\r\n---\r\n",
    ] {
        let edited = updated(card);
        let block = &front_matter(&edited)["co2_eq_emissions"];
        assert_eq!(block["emissions"].as_f64(), Some(0.45714), "{edited}");
        assert_eq!(block["geographical_location"], "Germany");
        for label in [
            "Hardware Type",
            "Hours used",
            "Cloud Provider",
            "Compute Region",
            "Carbon Emitted",
        ] {
            assert!(edited.contains(&format!("- **{label}:** ")), "{label}");
        }
        let bare = edited.matches('\n').count() - edited.matches("\r\n").count();
        assert!(
            bare == 0 || !edited.contains('\r'),
            "line endings are mixed:\n{edited}"
        );
    }
}

#[test]
fn what_was_there_is_replaced_in_its_place_and_nothing_else() {
    let before = "---\nlicense: mit\nco2_eq_emissions:\n  emissions: 3 # by hand\n  training_type: pre-training\n\
                  # kept\ntags: [a]\n---\n# T\n\n### Environmental impact\n\nold\n\n#### deeper\n\nold\n\n## Next\n\ntext";
    let edited = updated(before);
    let block = &front_matter(&edited)["co2_eq_emissions"];
    assert_eq!(
        block["training_type"], "pre-training",
        "what the card says is kept"
    );
    assert!(!edited.contains("\nold\n") && !edited.contains("by hand"));
    assert!(edited.starts_with("---\nlicense: mit\nco2_eq_emissions:\n  emissions: 0.45714\n"));
    assert!(edited.contains(
        "Example CPU 8-Core (2 of 16 threads), 8 GB RAM\"\n# kept\ntags: [a]\n---\n# T\n\n<!-- "
    ));
    assert!(
        edited.contains("\n### Environmental Impact\n"),
        "the level stays"
    );
    assert!(edited.ends_with(" -->\n\n## Next\n\ntext"));
    assert_eq!(updated(&edited), edited);
    let removed = String::from_utf8(remove(edited.as_bytes()).unwrap()).unwrap();
    assert_eq!(
        removed,
        "---\nlicense: mit\n# kept\ntags: [a]\n---\n# T\n\n## Next\n\ntext"
    );
}

#[test]
fn a_scalar_block_a_flow_block_and_a_quoted_key_are_replaced() {
    for block in [
        "co2_eq_emissions: 0.0121\n",
        "co2_eq_emissions: {emissions: 1,\n  source: x\n}\n",
        "\"co2_eq_emissions\":\n  emissions: 1\n",
        "co2_eq_emissions:\n",
    ] {
        let card = format!("---\n{block}license: mit\n---\nText\n");
        let edited = updated(&card);
        assert!(
            front_matter(&edited)["co2_eq_emissions"]["emissions"].is_number(),
            "{edited}"
        );
        assert_eq!(edited.matches("co2_eq_emissions").count(), 1);
        assert_eq!(
            remove(edited.as_bytes()).unwrap(),
            b"---\nlicense: mit\n---\nText\n"
        );
    }
}

#[test]
fn several_runs_add_up_and_failed_ones_are_listed() {
    let good = record(Some("DEU"));
    let mut failed = record(Some("NOR"));
    failed.name = "first | try".into();
    failed.ended_early = true;
    let both = [failed.clone(), good.clone()];
    let grams = |r: &EnergyRecord| r.emissions_g.central.unwrap();
    let edited = update(b"# T\n", &both, &Details::default()).unwrap();
    let edited = String::from_utf8(edited).unwrap();
    let block = &front_matter(&edited)["co2_eq_emissions"];
    let sum = grams(&good) + grams(&failed);
    assert!((block["emissions"].as_f64().unwrap() / sum - 1.0).abs() < 1e-5);
    assert_eq!(block["energy_consumed"].as_f64(), Some(0.0024));
    assert_eq!(block["geographical_location"], "Norway; Germany");
    assert!(edited.contains("The sum of 2 runs, failed ones included"));
    assert!(edited.contains("| first \\| try | 2026-01-15T10:00:00Z | 2 min 30 s | 1.2 Wh |"));
    assert!(edited.contains("| early |"));

    let total = sparsam_tracker::combine::sum(&both).unwrap();
    let recomputed =
        total.energy_kwh.central * total.pue.value * total.intensity.g_per_kwh.central.unwrap();
    assert!(
        (recomputed / sum - 1.0).abs() < 1e-9,
        "the formula still gives the sum"
    );

    let twice = [good.clone(), good];
    assert!(matches!(
        update(b"", &twice, &Details::default()),
        Err(EditError::Twice { .. })
    ));
    assert!(matches!(
        update(b"", &[], &Details::default()),
        Err(EditError::NoRun)
    ));
}

#[test]
fn a_run_without_a_place_is_refused_until_the_place_is_given() {
    let nowhere = record(None);
    let error = update(
        b"# T\n",
        std::slice::from_ref(&nowhere),
        &Details::default(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the run `quickstart` has no single figure: its place was not given"
    );
    assert!(error.hint().unwrap().contains("--country"));
    let placed = nowhere.clone().at_place(Some("DE"), None).unwrap();
    assert_eq!(placed.emissions_g, record(Some("DEU")).emissions_g);
    let stated = StatedIntensity {
        g_per_kwh: 50.0,
        source: "contract of 2026".into(),
    };
    let stated = nowhere.at_place(None, Some(&stated)).unwrap();
    assert!((stated.emissions_g.central.unwrap() - 0.06).abs() < 1e-12);
}

/// Found by fuzzing: behind a comment that is never closed, the section would be written again and again.
#[test]
fn a_body_in_which_the_section_would_not_be_found_again_is_refused() {
    let card = "# T\n\n<!-- sparsam: start oeq_emissions: 12.5\n---\n```\n---\n# f Environmental Impact, \
                written by `sparsam card up Impact, written by `sparsam card update` -->\n\n\
                ### Environmental Impact\n\nold\n\n<!-- sparsam: end of Environmental ";
    let error = update(card.as_bytes(), &records(), &Details::default()).unwrap_err();
    assert!(
        error.to_string().contains("comment that is not closed"),
        "{error}"
    );
}

#[test]
fn invalid_cards_are_refused_with_line_and_reason_and_stay_untouched() {
    for (card, line) in [
        ("---\nlicense: mit\ntags: [a, b\n---\nText\n", 0),
        ("---\na: b: c\n---\n", 2),
        ("---\n\ttab: 1\n---\n", 0),
        ("---\nlicense: mit\nlicense: apache-2.0\n---\n", 3),
        ("---\n- a\n- b\n---\n", 2),
        ("---\nopen: never\n", 1),
        ("---\n{card_data}\n---\n", 0),
        ("# T\n\n```python\nx = 1\n", 3),
        ("---\n  indented: 1\n---\n", 0),
    ] {
        let error = update(card.as_bytes(), &records(), &Details::default()).unwrap_err();
        let EditError::Card(inner) = &error else {
            panic!("{card:?}: {error}");
        };
        assert!(line == 0 || inner.line() == line, "{card:?}: {error}");
        assert!(error.hint().is_some());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        fs::write(&path, card).unwrap();
        assert!(update_file(&path, &records(), &Details::default(), None).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), card);
    }
    assert!(matches!(
        update(b"x\n\xff\n", &records(), &Details::default()),
        Err(EditError::Card(CardError::NotUtf8 { line: 2 }))
    ));
}

#[test]
fn a_file_is_replaced_whole_and_left_alone_the_second_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("README.md");
    fs::write(&path, "# T\n").unwrap();
    let edit = || update_file(&path, &records(), &Details::default(), None).unwrap();
    assert_eq!(edit(), Outcome::Written);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(edit(), Outcome::Unchanged);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    let missing = folder.path().join("none.md");
    assert!(matches!(
        update_file(&missing, &records(), &Details::default(), None),
        Err(EditError::File { action: "read", .. })
    ));
}

#[test]
fn real_cards_come_back_byte_for_byte() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED") else {
        return; // Only where the collection is at hand; the cards above cover the same ground.
    };
    let (mut edited_cards, mut refused) = (0, 0);
    for entry in fs::read_dir(std::path::Path::new(&shared).join("data/cards")).unwrap() {
        let path = entry.unwrap().path();
        let before = fs::read(&path).unwrap();
        let edited = match update(&before, &records(), &Details::default()) {
            Ok(edited) => edited,
            Err(error) => {
                refused += 1;
                assert!(
                    matches!(error, EditError::Card(_)),
                    "{}: {error}",
                    path.display()
                );
                continue;
            }
        };
        edited_cards += 1;
        assert_eq!(
            update(&edited, &records(), &Details::default()).unwrap(),
            edited
        );
        let back = remove(&edited).unwrap();
        let text = String::from_utf8(before).unwrap();
        if text.contains("co2_eq_emissions:") {
            // The old block is gone; all other lines are there, byte for byte.
            let cut: String = without_old_block(&text);
            assert_eq!(String::from_utf8(back).unwrap(), cut, "{}", path.display());
        } else {
            assert_eq!(String::from_utf8(back).unwrap(), text, "{}", path.display());
        }
    }
    assert!(
        edited_cards >= 24,
        "{edited_cards} edited, {refused} refused"
    );
    assert!(refused >= 1, "{edited_cards} edited, {refused} refused");
}

/// The card less its block, by a rule of its own: the key's line and the indented ones after it.
fn without_old_block(text: &str) -> String {
    let mut inside = false;
    text.split_inclusive('\n')
        .filter(|line| {
            inside = line.starts_with("co2_eq_emissions:") || (inside && line.starts_with(' '));
            !inside
        })
        .collect()
}

/// Lines a card may be made of, and pieces that are dangerous in it.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("---".to_owned()),
        Just("# Heading".to_owned()),
        Just("## Environmental Impact of trees".to_owned()),
        Just("key: value".to_owned()),
        Just("co2_eq: |".to_owned()),
        Just("  indented".to_owned()),
        Just("- item".to_owned()),
        Just("# comment".to_owned()),
        Just("```".to_owned()),
        Just("<!-- note -->".to_owned()),
        "[ -~äß\u{1F333}]{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any text is either refused or comes back byte for byte.
    #[test]
    fn any_text_is_refused_or_comes_back(
        front in prop::option::of(prop::collection::vec(line(), 0..5)),
        body in prop::collection::vec(line(), 0..8),
        crlf: bool,
        bom: bool,
        last: bool,
    ) {
        let eol = if crlf { "\r\n" } else { "\n" };
        let mut lines = Vec::new();
        if let Some(front) = front {
            lines.push("---".to_owned());
            lines.extend(front);
            lines.push("---".to_owned());
        }
        lines.extend(body);
        let mut card = if bom { "\u{feff}".to_owned() } else { String::new() };
        card.push_str(&lines.join(eol));
        if last {
            card.push_str(eol);
        }
        if let Ok(edited) = update(card.as_bytes(), &records(), &Details::default()) {
            let again = update(&edited, &records(), &Details::default()).unwrap();
            prop_assert_eq!(&again, &edited);
            let back = remove(&edited).unwrap();
            prop_assert_eq!(String::from_utf8(back).unwrap(), card);
        }
    }

    /// Any bytes at all: no panic.
    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(update(&bytes, &records(), &Details::default()));
        drop(remove(&bytes));
        drop(sparsam_tracker::card::lint::lint(&bytes));
    }
}
