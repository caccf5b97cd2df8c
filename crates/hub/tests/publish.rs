//! Publishing to a Hub on loopback: one commit, nothing twice, nothing over somebody else's change.

use std::time::Duration;

use sparsam_hub::publish::{Content, Item, Manner, Publication, Published};
use sparsam_hub::{HubError, Kind, Repo, Server, Settings, Token};

mod loopback;

use loopback::{Fault, Host, Loopback, TOKEN};

const REPO: &str = "models/me/trees";

struct Desk {
    hub: Loopback,
    folder: tempfile::TempDir,
    settings: Settings,
}

fn manner() -> Manner {
    Manner {
        private: false,
        pull_request: false,
        summary: "Upload".to_owned(),
        description: "All of it".to_owned(),
    }
}

impl Desk {
    fn new() -> Self {
        let hub = Loopback::start();
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: hub.endpoint.clone(),
            cache: folder.path().join("hub"),
            token: Some(Token::new(TOKEN).unwrap()),
            token_when_reading: true,
            offline: false,
            patience: Duration::from_millis(700),
            pause: Duration::from_millis(1),
            attempts: 3,
        };
        Self {
            hub,
            folder,
            settings,
        }
    }

    fn items(&self, weights: &[u8]) -> Vec<Item> {
        let path = self.folder.path().join("adapter_model.safetensors");
        std::fs::write(&path, weights).unwrap();
        vec![
            Item::new(
                "adapter_config.json",
                Content::Bytes(b"{\"r\": 4}".to_vec()),
            )
            .unwrap(),
            Item::new("adapter_model.safetensors", Content::File(path)).unwrap(),
            Item::new(
                "README.md",
                Content::Bytes(b"---\nlicense: mit\n---\n".to_vec()),
            )
            .unwrap(),
        ]
    }

    fn publish(&self, items: Vec<Item>, manner: &Manner) -> Result<Option<Published>, HubError> {
        let repo = Repo::new(Kind::Model, "me/trees").unwrap();
        let say = |_: &str| {};
        let server = Server::new(&self.settings, &say);
        let publication = Publication::new(&server, &repo);
        let there = publication.look()?;
        let proposal = publication.propose(&there, items, manner)?;
        publication.send(&there, &proposal, manner)
    }
}

#[test]
fn one_commit_holds_everything_and_a_second_one_is_not_made() {
    let desk = Desk::new();
    // Longer than what is read at once.
    let weights = vec![7u8; 700_000];
    let private = Manner {
        private: true,
        ..manner()
    };
    let published = desk
        .publish(desk.items(&weights), &private)
        .unwrap()
        .unwrap();
    let (found, commits) = {
        let state = desk.hub.state();
        (state.repositories[REPO].clone(), state.commits.clone())
    };
    assert!(found.private);
    assert_eq!(found.files["adapter_model.safetensors"], weights);
    assert_eq!(found.files["adapter_config.json"], b"{\"r\": 4}");
    assert_eq!(commits.len(), 1);
    assert_eq!(commits[0].summary, "Upload");
    assert!(
        published.url.ends_with(&found.commit()),
        "{}",
        published.url
    );
    // The token went to the Hub, and not to where large files are kept.
    for asked in desk.hub.asked() {
        assert!(asked.host == Host::Hub || asked.header("authorization").is_empty());
    }

    assert_eq!(desk.publish(desk.items(&weights), &manner()).unwrap(), None);
    assert!(desk.hub.asked().iter().all(|asked| asked.method == "GET"));

    // One file changed: that one is sent.
    desk.publish(desk.items(&[8; 9000]), &manner())
        .unwrap()
        .unwrap();
    assert_eq!(
        desk.hub.state().commits[1].paths,
        ["adapter_model.safetensors"]
    );
}

#[test]
fn a_pull_request_changes_nothing() {
    let desk = Desk::new();
    let proposing = Manner {
        pull_request: true,
        ..manner()
    };
    let error = desk.publish(desk.items(b"x"), &proposing).unwrap_err();
    assert!(error.to_string().contains("no such repository"), "{error}");
    desk.hub.put(REPO, &[("README.md", b"# Mine\n")]);
    let published = desk.publish(desk.items(b"x"), &proposing).unwrap().unwrap();
    assert!(published.url.ends_with("/discussions/1"));
    let state = desk.hub.state();
    assert_eq!(state.repositories[REPO].files.len(), 1);
    assert!(state.commits[0].proposed);
}

#[test]
fn a_change_of_somebody_else_is_not_overwritten() {
    let desk = Desk::new();
    desk.hub.put(REPO, &[("README.md", b"# Mine\n")]);
    let repo = Repo::new(Kind::Model, "me/trees").unwrap();
    let say = |_: &str| {};
    let server = Server::new(&desk.settings, &say);
    let publication = Publication::new(&server, &repo);
    let there = publication.look().unwrap();
    assert_eq!(there.card.as_deref(), Some(&b"# Mine\n"[..]));
    desk.hub.put(REPO, &[("README.md", b"# Mine, better\n")]);
    let proposal = publication
        .propose(&there, desk.items(b"x"), &manner())
        .unwrap();
    let error = publication.send(&there, &proposal, &manner()).unwrap_err();
    assert!(matches!(error, HubError::Conflict { .. }), "{error}");
    assert!(desk.hub.state().commits.is_empty());
}

#[test]
fn what_cannot_be_published_says_why() {
    let mut desk = Desk::new();
    desk.hub.put(REPO, &[("README.md", b"# Mine\n")]);
    let private = Manner {
        private: true,
        ..manner()
    };
    let error = desk.publish(desk.items(b"x"), &private).unwrap_err();
    assert!(error.to_string().contains("public"), "{error}");
    // A commit whose answer was lost is not made again without looking.
    let lost = Fault::Status(500, Vec::new());
    desk.hub.fault("/api/models/me/trees/commit/main", &[lost]);
    let error = desk.publish(desk.items(b"x"), &manner()).unwrap_err();
    assert!(error.to_string().contains("`500`"), "{error}");
    let posts = desk.hub.asked();
    let posts = posts.iter().filter(|asked| asked.path.contains("/commit/"));
    assert_eq!(posts.count(), 1);

    desk.settings.token = None;
    let error = desk.publish(desk.items(b"x"), &manner()).unwrap_err();
    assert!(matches!(error, HubError::NoToken), "{error}");
    desk.settings.offline = true;
    let error = desk.publish(desk.items(b"x"), &manner()).unwrap_err();
    assert!(matches!(error, HubError::OfflineWrite), "{error}");
}

#[test]
fn the_hubs_check_of_a_card_is_passed_on() {
    let desk = Desk::new();
    let repo = Repo::new(Kind::Model, "me/trees").unwrap();
    let say = |_: &str| {};
    let server = Server::new(&desk.settings, &say);
    let publication = Publication::new(&server, &repo);
    publication.check_card(b"---\nlicense: mit\n---\n").unwrap();
    let error = publication
        .check_card(b"---\nlicense: no-such-licence\n---\n")
        .unwrap_err();
    assert!(error.to_string().contains("must be one of"), "{error}");
}
