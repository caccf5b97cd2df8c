//! Fetching against a Hub on loopback: what is asked, what lies in the cache, what a fault leaves behind.

use std::path::Path;
use std::time::Duration;

use sparsam_hub::digest::Hash;
use sparsam_hub::{
    Fetched, HubError, Kind, Need, Observer, Plan, Repo, Server, Settings, Token, fetch,
};

mod loopback;

use loopback::{Fault, Host, Loopback, TOKEN};

const REPO: &str = "models/org/small";
const WEIGHTS: &str = "model.safetensors";

/// A cache of its own beside a Hub of its own.
struct Desk {
    hub: Loopback,
    cache: tempfile::TempDir,
    settings: Settings,
}

#[derive(Default)]
struct Ear {
    plans: Vec<Plan>,
    last: u64,
    stop_at: Option<u64>,
    said: Vec<String>,
}

impl Observer for Ear {
    fn begin(&mut self, plan: Plan) {
        self.plans.push(plan);
    }
    fn at(&mut self, bytes: u64) -> bool {
        self.last = bytes;
        self.stop_at.is_none_or(|stop| bytes < stop)
    }
    fn say(&mut self, text: &str) {
        self.said.push(text.to_owned());
    }
}

/// Bytes that look like nothing, the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}

impl Desk {
    fn new() -> Self {
        let hub = Loopback::start();
        hub.put(
            REPO,
            &[
                ("README.md", b"---\nlicense: apache-2.0\n---\n# Small\n"),
                ("config.json", b"{\"model_type\": \"llama\"}"),
                ("tokenizer.json", b"{}"),
                (WEIGHTS, &noise(100_000, 1)),
                ("pytorch_model.bin", &noise(50_000, 2)),
                ("onnx/model.onnx", b"no"),
            ],
        );
        let cache = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: hub.endpoint.clone(),
            cache: cache.path().join("hub"),
            token: None,
            token_when_reading: true,
            offline: false,
            patience: Duration::from_millis(700),
            pause: Duration::from_millis(1),
            attempts: 3,
        };
        Self {
            hub,
            cache,
            settings,
        }
    }

    fn fetch_from(&self, revision: &str, ear: &mut Ear) -> Result<Fetched, HubError> {
        let repo = Repo::new(Kind::Model, "org/small").unwrap();
        let say = |_: &str| {};
        let server = Server::new(&self.settings, &say);
        fetch(&server, &self.settings, &repo, revision, &Need::Any, ear)
    }

    fn fetch(&self) -> Result<Fetched, HubError> {
        self.fetch_from("main", &mut Ear::default())
    }

    /// Everything with a name in the cache is what it says it is.
    #[track_caller]
    fn nothing_corrupt(&self) {
        let root = self.settings.cache.join("models--org--small");
        let Ok(blobs) = std::fs::read_dir(root.join("blobs")) else {
            return;
        };
        for entry in blobs {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.ends_with(".incomplete") {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let hash = match Hash::parse(name).expect("a blob is named by its hash") {
                Hash::Sha256(_) => Hash::sha256(&bytes),
                Hash::Git(_) => Hash::git(&bytes),
            };
            assert_eq!(hash.digits(), name);
        }
    }

    #[track_caller]
    fn same_weights(&self, fetched: &Fetched) {
        let bytes = std::fs::read(fetched.folder.join(WEIGHTS)).unwrap();
        let there = self.hub.state().repositories[REPO].files[WEIGHTS].clone();
        assert!(bytes == there, "the weights differ");
        self.nothing_corrupt();
    }

    /// Fails, with these words and a hint, and leaves nothing corrupt and no snapshot's weights.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> HubError {
        let error = self.fetch().unwrap_err();
        for word in words {
            assert!(
                error.to_string().contains(word),
                "`{word}` is not in: {error}"
            );
        }
        assert!(error.hint().is_some(), "{error}");
        self.nothing_corrupt();
        error
    }
}

#[test]
fn only_what_is_needed_comes_and_the_cache_is_pythons() {
    let desk = Desk::new();
    let mut ear = Ear::default();
    let fetched = desk.fetch_from("main", &mut ear).unwrap();
    desk.same_weights(&fetched);
    assert_eq!(fetched.license.as_deref(), Some("apache-2.0"));
    assert_eq!(
        fetched.files,
        ["config.json", WEIGHTS, "README.md", "tokenizer.json"]
    );
    assert_eq!(
        ear.plans,
        [Plan {
            files: 4,
            bytes: fetched.came
        }]
    );
    assert_eq!(ear.last, fetched.came);
    for asked in desk.hub.asked() {
        assert!(
            !asked.path.contains("pytorch") && !asked.path.contains("onnx"),
            "{}",
            asked.path
        );
    }

    let root = desk.settings.cache.join("models--org--small");
    let commit = std::fs::read_to_string(root.join("refs/main")).unwrap();
    assert_eq!(fetched.folder, root.join("snapshots").join(&commit));
    let link = std::fs::read_link(fetched.folder.join("config.json")).unwrap();
    let blob = Hash::git(b"{\"model_type\": \"llama\"}");
    assert_eq!(link, Path::new("../../blobs").join(blob.digits()));

    // Again: the listing is asked for, no file is.
    let again = desk.fetch().unwrap();
    assert_eq!((again.came, again.folder), (0, fetched.folder));
    assert_eq!(desk.hub.asked().len(), 1);
    // By its commit: nothing at all is asked.
    assert_eq!(desk.fetch_from(&commit, &mut ear).unwrap().commit, commit);
    assert!(desk.hub.asked().is_empty());
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let mut desk = Desk::new();
    desk.settings.token = Some(Token::new(TOKEN).unwrap());
    desk.hub.with(REPO, |repository| repository.private = true);
    desk.fetch().unwrap();
    let asked = desk.hub.asked();
    assert!(asked.iter().any(|asked| asked.host == Host::Cdn));
    for asked in asked {
        let wanted = match asked.host {
            Host::Hub => format!("Bearer {TOKEN}"),
            Host::Cdn => String::new(),
        };
        assert_eq!(asked.header("authorization"), wanted, "{}", asked.path);
    }
}

#[test]
fn a_download_goes_on_after_a_cut_at_any_byte() {
    for round in 0..50u64 {
        let desk = Desk::new();
        let places = noise(4, round + 1);
        let at = |i: usize| (usize::from(places[i]) * 251 + usize::from(places[i + 1])) % 60_000;
        desk.hub
            .fault(WEIGHTS, &[Fault::Cut(at(0)), Fault::Cut(at(2))]);
        let fetched = desk.fetch().unwrap();
        desk.same_weights(&fetched);
        let asked = desk.hub.asked();
        let ranges: Vec<&str> = asked
            .iter()
            .filter(|asked| asked.host == Host::Cdn)
            .map(|asked| asked.header("range"))
            .collect();
        let first = at(0);
        if first > 0 {
            assert_eq!(ranges[1], format!("bytes={first}-"), "round {round}");
        }
    }
}

#[test]
fn an_interrupted_download_keeps_what_came() {
    let desk = Desk::new();
    desk.hub.fault(WEIGHTS, &[Fault::Slow]);
    let mut ear = Ear {
        stop_at: Some(30_000),
        ..Ear::default()
    };
    let error = desk.fetch_from("main", &mut ear).unwrap_err();
    assert!(matches!(error, HubError::Interrupted));
    let fetched = desk.fetch().unwrap();
    assert!(fetched.came < 80_000, "{} bytes came again", fetched.came);
    desk.same_weights(&fetched);
}

#[test]
fn another_process_goes_on_where_one_was_killed() {
    let desk = Desk::new();
    let bytes = noise(100_000, 1);
    let blobs = desk.settings.cache.join("models--org--small/blobs");
    let part = blobs.join(format!("{}.incomplete", Hash::sha256(&bytes).digits()));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(&part, &bytes[..70_000]).unwrap();
    desk.same_weights(&desk.fetch().unwrap());
    let asked = desk.hub.asked();
    let ranges: Vec<_> = asked
        .iter()
        .filter(|asked| asked.host == Host::Cdn)
        .collect();
    assert_eq!(ranges.len(), 1);
    assert_eq!(ranges[0].header("range"), "bytes=70000-");
    assert!(!part.exists());
}

#[test]
fn a_damaged_part_is_thrown_away_and_the_file_fetched_anew() {
    for part in [vec![7u8; 70_000], vec![7u8; 200_000], vec![7u8; 100_000]] {
        let desk = Desk::new();
        let bytes = noise(100_000, 1);
        let blobs = desk.settings.cache.join("models--org--small/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let name = format!("{}.incomplete", Hash::sha256(&bytes).digits());
        std::fs::write(blobs.join(name), part).unwrap();
        desk.same_weights(&desk.fetch().unwrap());
    }
}

#[test]
fn a_server_without_ranges_is_begun_anew() {
    let desk = Desk::new();
    desk.hub
        .fault(WEIGHTS, &[Fault::Cut(30_000), Fault::NoRange]);
    desk.same_weights(&desk.fetch().unwrap());
}

#[test]
fn a_wrong_checksum_is_said_and_leaves_nothing() {
    let desk = Desk::new();
    desk.hub.fault(WEIGHTS, &[Fault::Corrupt]);
    desk.refused(&["model.safetensors", "wrong checksum"]);
    let root = desk.settings.cache.join("models--org--small");
    let blobs = std::fs::read_dir(root.join("blobs")).unwrap();
    for blob in blobs {
        let name = blob.unwrap().file_name().into_string().unwrap();
        assert_eq!(name.len(), 40, "only small files are there: {name}");
    }
    assert!(!root.join("refs/main").exists());
    // And the next one is good.
    desk.same_weights(&desk.fetch().unwrap());
}

#[test]
fn truncated_slow_and_silent_bodies() {
    let desk = Desk::new();
    desk.hub.fault(WEIGHTS, &[Fault::Slow]);
    desk.same_weights(&desk.fetch().unwrap());

    let desk = Desk::new();
    desk.hub.fault(WEIGHTS, &[Fault::Stall(20_000)]);
    desk.same_weights(&desk.fetch().unwrap());

    let desk = Desk::new();
    let cut = vec![
        Fault::Cut(20_000),
        Fault::Cut(0),
        Fault::Cut(0),
        Fault::Cut(0),
    ];
    desk.hub.fault(WEIGHTS, &cut);
    desk.refused(&["stopped coming after 20000 of 100000 bytes", "cut"]);
    desk.hub.asked();
    desk.same_weights(&desk.fetch().unwrap());
    let asked = desk.hub.asked();
    let ranges = asked
        .iter()
        .filter(|asked| asked.header("range") == "bytes=20000-");
    assert_eq!(
        ranges.count(),
        1 + 1,
        "asked of the Hub and of the host it redirects to"
    );
}

#[test]
fn a_file_that_changes_is_never_mixed() {
    // The branch moved: the new commit is fetched as a whole.
    let desk = Desk::new();
    let new = noise(120_000, 9);
    desk.hub
        .fault(WEIGHTS, &[Fault::Cut(40_000), Fault::Moves(new.clone())]);
    let fetched = desk.fetch().unwrap();
    desk.same_weights(&fetched);
    assert_eq!(
        std::fs::read(fetched.folder.join(WEIGHTS)).unwrap().len(),
        new.len()
    );

    // A server that contradicts itself is not believed.
    let desk = Desk::new();
    desk.hub.fault(WEIGHTS, &vec![Fault::OtherEtag; 4]);
    desk.refused(&["changed while it was fetched"]);
    let blobs = desk.settings.cache.join("models--org--small/blobs");
    let left = std::fs::read_dir(blobs).unwrap();
    assert!(left.count() <= 3, "no part of the weights is left");
}

#[test]
fn refusals_are_explained() {
    let desk = Desk::new();
    desk.hub.with(REPO, |repository| repository.gated = true);
    let error = desk.refused(&["org/small", "gated"]);
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("{}/org/small", desk.hub.endpoint))
    );

    let desk = Desk::new();
    desk.hub.with(REPO, |repository| repository.private = true);
    let error = desk.refused(&["no model `org/small`", "private"]);
    assert!(error.hint().unwrap().contains("HF_TOKEN"));

    let mut desk = Desk::new();
    desk.settings.token = Some(Token::new("hf_expired").unwrap());
    let error = desk.refused(&["does not accept the token"]);
    assert!(!format!("{error:?}").contains("hf_expired"));

    let desk = Desk::new();
    let error = desk.fetch_from("v9", &mut Ear::default()).unwrap_err();
    assert_eq!(error.to_string(), "`org/small` has no revision `v9`");
    let error = desk.fetch_from("../../x", &mut Ear::default()).unwrap_err();
    assert!(error.is_usage());

    let desk = Desk::new();
    let forbidden = vec![(
        "X-Error-Message".to_owned(),
        "Not in your region".to_owned(),
    )];
    desk.hub.fault(
        "/api/models/org/small/revision/main",
        &[Fault::Status(403, forbidden)],
    );
    desk.refused(&["refuses access", "Not in your region"]);
}

#[test]
fn the_hub_is_given_the_time_it_asks_for() {
    let route = "/api/models/org/small/revision/main";
    let after =
        |seconds: &str| Fault::Status(429, vec![("Retry-After".to_owned(), seconds.to_owned())]);
    let desk = Desk::new();
    desk.hub.fault(route, &[after("1")]);
    let begun = std::time::Instant::now();
    desk.fetch().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));

    let desk = Desk::new();
    desk.hub.fault(route, &[after("3600")]);
    desk.refused(&["too many requests", "3600 s"]);
    assert_eq!(
        desk.hub.asked().len(),
        1,
        "it was asked once and left alone"
    );
}

#[test]
fn a_hub_in_trouble_is_asked_again_and_then_replaced_by_the_cache() {
    let route = "/api/models/org/small/revision/main";
    let trouble = || Fault::Status(503, Vec::new());
    let desk = Desk::new();
    desk.hub.fault(route, &[trouble(), trouble()]);
    let fetched = desk.fetch().unwrap();

    desk.hub.fault(route, &[trouble(), trouble(), trouble()]);
    let mut ear = Ear::default();
    let again = desk.fetch_from("main", &mut ear).unwrap();
    assert_eq!(
        again,
        Fetched {
            came: 0,
            files: again.files.clone(),
            ..fetched
        }
    );
    assert!(
        ear.said[0].contains("503") && ear.said[0].contains("fetched before"),
        "{:?}",
        ear.said
    );

    let desk = Desk::new();
    desk.hub.fault(route, &[trouble(), trouble(), trouble()]);
    desk.refused(&["`503`", "3 times"]);

    // Trouble in the middle of a file.
    let desk = Desk::new();
    desk.hub
        .fault(WEIGHTS, &[Fault::Cut(10_000), trouble(), trouble()]);
    desk.same_weights(&desk.fetch().unwrap());
}

#[test]
fn nobody_there_is_said() {
    let mut desk = Desk::new();
    desk.settings.endpoint = "http://127.0.0.1:9".to_owned();
    desk.refused(&["cannot reach `http://127.0.0.1:9`", "nobody answers"]);
}

#[test]
fn offline_asks_nobody() {
    let mut desk = Desk::new();
    desk.settings.offline = true;
    desk.refused(&["HF_HUB_OFFLINE", "org/small", "main"]);
    desk.settings.offline = false;
    let fetched = desk.fetch().unwrap();
    desk.hub.asked();
    desk.settings.offline = true;
    let cached = desk.fetch().unwrap();
    assert_eq!(
        (cached.folder, cached.license),
        (fetched.folder.clone(), fetched.license)
    );
    // A snapshot that lost its weights is not whole.
    std::fs::remove_file(fetched.folder.join(WEIGHTS)).unwrap();
    desk.refused(&["not wholly"]);
    assert!(desk.hub.asked().is_empty());
    assert!(desk.cache.path().exists());
}

#[test]
fn listings_without_sizes_and_hashes_are_completed() {
    let desk = Desk::new();
    desk.hub.with(REPO, |repository| repository.terse = true);
    desk.same_weights(&desk.fetch().unwrap());
    assert!(desk.hub.asked().iter().any(|asked| asked.method == "HEAD"));
}

#[test]
fn paths_that_would_leave_the_cache_are_refused() {
    let desk = Desk::new();
    desk.hub.put(REPO, &[("../../../evil", b"x")]);
    desk.refused(&["../../../evil"]);
}
