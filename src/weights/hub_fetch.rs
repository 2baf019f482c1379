//! Fetching a model from the hub into the cache: which files it is made of, and that all of them are there.
//!
//! All files come from the one commit that the revision means at the start, and the revision is noted in the cache when all
//! of them are there: a fetch that was cut off is no model, and goes on where it stopped.

use std::collections::BTreeSet;
use std::path::Path;

use super::folder::{Folder, has_model_type};
use super::hub::{HubOptions, hub_error};
use super::hub_blob::{fetch_file, make_parent};
use super::hub_cache::{CachedRepo, is_commit};
use super::hub_http::{Client, Problem};
use super::layout::{self, Form, Layout, OPTIONAL_FILES, no_weights};
use super::save::write_atomic;
use crate::Result;

/// Fetches the files that are not in the cache yet; the snapshot's folder.
pub(super) fn fetch(id: &str, options: &HubOptions, repo: &CachedRepo, revision: &str) -> Result<Folder> {
    let client = Client::new(id, options);
    let (commit, files) = listing(&client, revision)?;
    let snapshot = repo.commit(&commit);
    let get = |file: &str| fetch_file(&client, repo, &snapshot, file);
    let has = |file: &str| files.contains(file);
    let configs = [Layout::HuggingFace, Layout::OpenClip].map(Layout::config_file);
    if !configs.iter().any(|config| has(config)) {
        let message =
            format!("the repository has no {}, so it is no model that can be loaded", configs.join(" and no "));
        return Err(hub_error(id, message));
    }
    for config in configs.into_iter().filter(|config| has(config)) {
        get(config)?;
    }
    let folder = Folder::open(snapshot.path())?;
    let chosen = || -> Result<Option<Layout>> {
        let model_type = has(configs[0]) && has_model_type(&folder.config()?);
        Ok(layout::choose(has, model_type))
    };
    let layout = options.layout.map_or_else(chosen, |layout| Ok(Some(layout)))?.unwrap_or(Layout::HuggingFace);
    let Some(weights) = layout.weights(has) else {
        return Err(hub_error(id, format!("the repository {}", no_weights(layout, files.iter().map(String::as_str)))));
    };
    let shards = match weights.form {
        Form::Single => BTreeSet::from([weights.name.to_string()]),
        Form::Index => {
            get(weights.name)?;
            weights.shards(&snapshot.path().join(weights.name), has)?
        }
    };
    for file in OPTIONAL_FILES {
        if has(file) {
            get(file)?;
        } else {
            note_missing(&snapshot.missing_marker(file))?;
        }
    }
    shards.iter().try_for_each(|shard| get(shard))?;
    note_revision(repo, revision, &commit)?;
    Ok(folder)
}

/// Fetches the files of the tokenizer alone; the snapshot's folder.
pub(super) fn fetch_tokenizer(id: &str, options: &HubOptions, repo: &CachedRepo, revision: &str) -> Result<Folder> {
    let client = Client::new(id, options);
    let (commit, files) = listing(&client, revision)?;
    let snapshot = repo.commit(&commit);
    for file in layout::tokenizer_files().filter(|file| files.contains(*file)) {
        fetch_file(&client, repo, &snapshot, file)?;
    }
    if !snapshot.has_tokenizer() {
        return Err(hub_error(id, "the repository has no tokenizer.json, and no other file of a vocabulary"));
    }
    note_revision(repo, revision, &commit)?;
    Folder::open(snapshot.path())
}

/// Notes in the cache which commit the branch or tag is.
fn note_revision(repo: &CachedRepo, revision: &str, commit: &str) -> Result<()> {
    if revision == commit {
        return Ok(());
    }
    let reference = repo.reference(revision);
    make_parent(&reference)?;
    write_atomic(&reference, |out| out.write_all(commit.as_bytes()))
}

/// The commit that the revision means, and its files.
fn listing(client: &Client, revision: &str) -> Result<(String, BTreeSet<String>)> {
    let answer = client.listing(revision)?;
    let odd = |message: String| client.explain(&Problem::Odd(message), None);
    let commit = answer.get("sha").and_then(serde_json::Value::as_str).unwrap_or_default();
    if !is_commit(commit) {
        return Err(odd(format!("the commit is '{}', which is none", commit.escape_debug())));
    }
    let files = answer.get("siblings").and_then(serde_json::Value::as_array);
    let files = files.ok_or_else(|| odd("the list of files is missing".into()))?;
    let name = |file: &serde_json::Value| Some(file.get("rfilename")?.as_str()?.to_string());
    Ok((commit.to_string(), files.iter().filter_map(name).collect()))
}

fn note_missing(marker: &Path) -> Result<()> {
    make_parent(marker)?;
    if marker.exists() {
        return Ok(());
    }
    write_atomic(marker, |_| Ok(()))
}
