//! Which files of a repository make up a model.

use crate::digest::Announced;
use crate::source::split_name;
use crate::{Result, StoreError};
use std::collections::{BTreeMap, BTreeSet};

/// A file of a repository.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// Its path there.
    pub(crate) path: String,
    /// Its length, if the repository tells.
    pub(crate) bytes: Option<u64>,
    /// How its bytes can be checked, if the repository tells.
    pub(crate) announced: Option<Announced>,
}

/// The files of a model.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    /// Each with its name in the model.
    pub(crate) files: Vec<(&'a Remote, String)>,
    /// The one to open, or empty for the folder.
    pub(crate) open: String,
}

/// Quantisations, the ones to prefer first: four bits, as the program is made for, and then what
/// is closest.
const PREFERRED: &[&str] = &[
    "q4_k_m", "q4_0", "q4_1", "q4_k_s", "q4_k_l", "q4_k", "iq4_nl", "q5_k_m", "q5_k_s", "q5_0",
    "q5_1", "q6_k", "q8_0", "bf16", "f16", "f32",
];

/// Chooses the files of `repo`. `part` may be the path of a GGUF file, a folder or a quantisation.
pub(crate) fn select<'a>(
    repo: &'a str,
    files: &'a [Remote],
    part: Option<&str>,
) -> Result<Selection<'a>> {
    let view = View::new(repo, files);
    match part {
        Some(part) => view.part(part),
        None => view.obvious(),
    }
}

/// A repository, sorted into what could be run.
struct View<'a> {
    repo: &'a str,
    files: &'a [Remote],
    /// GGUF models: the path of the first file → all files.
    gguf: BTreeMap<&'a str, Vec<&'a Remote>>,
    /// Folders of models in other formats.
    folders: BTreeSet<&'a str>,
}

impl<'a> View<'a> {
    fn new(repo: &'a str, files: &'a [Remote]) -> Self {
        let mut parts: BTreeMap<(&str, &str), Vec<&Remote>> = BTreeMap::new();
        for file in files.iter().filter(|file| is_model_gguf(&file.path)) {
            parts.entry(split_name(&file.path).unwrap_or((&file.path, ""))).or_default().push(file);
        }
        let mut gguf = BTreeMap::new();
        for mut parts in parts.into_values() {
            parts.sort_by(|a, b| a.path.cmp(&b.path));
            if let Some(first) = parts.first() {
                gguf.insert(first.path.as_str(), parts);
            }
        }
        let names: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let has = |folder: &str, name: &str| names.contains(in_folder(folder, name).as_str());
        let folders = files.iter().filter_map(|file| {
            let (folder, name) = split_path(&file.path);
            let oga = name == "genai_config.json";
            let hf = name.ends_with(".safetensors") && has(folder, "config.json");
            (oga || hf).then_some(folder)
        });
        Self { repo, files, gguf, folders: folders.collect() }
    }

    /// The model that is meant when none is named.
    fn obvious(&self) -> Result<Selection<'a>> {
        let oga = self.files.iter().any(|file| file.path == "genai_config.json");
        if oga {
            return Ok(self.folder(""));
        }
        if !self.gguf.is_empty() {
            let all: Vec<&str> = self.gguf.keys().copied().collect();
            let tagged =
                |tag: &&str| all.iter().copied().filter(|path| has_tag(path, tag)).collect();
            let by_tag = PREFERRED.iter().map(tagged).find(|found: &Vec<&str>| !found.is_empty());
            return match (all.as_slice(), by_tag.as_deref()) {
                ([only], _) | (_, Some([only])) => Ok(self.gguf_file(only)),
                _ => Err(self.ambiguous()),
            };
        }
        if self.folders.contains("") {
            return Ok(self.folder(""));
        }
        let folders: Vec<&str> = self.folders.iter().copied().collect();
        let cpu = |folder: &&str| folder.contains("cpu") && folder.contains("int4");
        let for_cpu: Vec<&str> = folders.iter().copied().filter(cpu).collect();
        match (folders.as_slice(), for_cpu.as_slice()) {
            ([], _) => Err(StoreError::NoModel(self.repo.to_owned())),
            ([only], _) | (_, [only]) => Ok(self.folder(only)),
            _ => Err(self.ambiguous()),
        }
    }

    /// The model that is named.
    fn part(&self, part: &str) -> Result<Selection<'a>> {
        if self.folders.contains(part) {
            return Ok(self.folder(part));
        }
        let matching = |matches: &dyn Fn(&str) -> bool| -> Vec<&'a str> {
            let of = |(first, parts): (&&'a str, &Vec<&Remote>)| {
                parts.iter().any(|file| matches(&file.path)).then_some(*first)
            };
            self.gguf.iter().filter_map(of).collect()
        };
        let candidates = [
            matching(&|path| path == part),
            matching(&|path| split_path(path).1 == part),
            matching(&|path| split_path(path).0 == part),
            matching(&|path| has_tag(path, &part.to_ascii_lowercase())),
        ];
        match candidates.iter().find(|found| !found.is_empty()).map(Vec::as_slice) {
            Some([only]) => Ok(self.gguf_file(only)),
            Some(several) => Err(StoreError::Ambiguous {
                repo: self.repo.to_owned(),
                choices: several.iter().map(|&path| path.to_owned()).collect(),
            }),
            None => Err(StoreError::NoSuchPart {
                repo: self.repo.to_owned(),
                asked: part.to_owned(),
                available: self.choices(),
            }),
        }
    }

    fn ambiguous(&self) -> StoreError {
        StoreError::Ambiguous { repo: self.repo.to_owned(), choices: self.choices() }
    }

    /// Everything that could be named.
    fn choices(&self) -> Vec<String> {
        let folders = self.folders.iter().filter(|folder| !folder.is_empty());
        self.gguf.keys().chain(folders).map(|&name| name.to_owned()).collect()
    }

    /// A GGUF model, by the path of its first file. Its files lie side by side in the store.
    fn gguf_file(&self, first: &str) -> Selection<'a> {
        let name = |file: &&'a Remote| (*file, split_path(&file.path).1.to_owned());
        let files = self.gguf.get(first).into_iter().flatten().map(name).collect();
        Selection { files, open: split_path(first).1.to_owned() }
    }

    /// A folder, without what is in it for people and for other programs.
    fn folder(&self, folder: &str) -> Selection<'a> {
        let oga = self.files.iter().any(|f| f.path == in_folder(folder, "genai_config.json"));
        let inside = self.files.iter().filter_map(|file| {
            let (parent, name) = split_path(&file.path);
            (parent == folder).then_some((file, name))
        });
        let inside: Vec<(&Remote, &str)> = inside.collect();
        let sharded = inside.iter().any(|(_, name)| name.starts_with("model"));
        let wanted = |name: &str| {
            if oga {
                !for_people(name)
            } else {
                let copy = sharded && name.starts_with("consolidated");
                !copy && for_transformers(name)
            }
        };
        let files = inside.into_iter().filter(|(_, name)| wanted(name));
        Selection { files: files.map(|(f, name)| (f, name.to_owned())).collect(), open: "".into() }
    }
}

/// Folder and name of a path.
fn split_path(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn in_folder(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// GGUF files, but for what goes with a model (projectors) or made it (importance matrices).
fn is_model_gguf(path: &str) -> bool {
    let name = split_path(path).1.to_ascii_lowercase();
    name.ends_with(".gguf") && !name.contains("mmproj") && !name.contains("imatrix")
}

/// Whether a quantisation is a word of the file's name. `tag` is in lower case.
fn has_tag(path: &str, tag: &str) -> bool {
    let name = split_path(path).1.to_ascii_lowercase();
    let whole = |at: usize| {
        let border = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
        let before = name.get(..at).and_then(|text| text.chars().next_back());
        let after = name.get(at + tag.len()..).and_then(|text| text.chars().next());
        border(before) && border(after)
    };
    !tag.is_empty() && name.match_indices(tag).any(|(at, _)| whole(at))
}

fn for_people(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ends = [".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf", ".mp4"];
    name.starts_with('.') || name.starts_with("license") || ends.iter().any(|e| name.ends_with(e))
}

/// What a Hugging Face folder of safetensors is read from.
fn for_transformers(name: &str) -> bool {
    let ends = [".json", ".safetensors", ".model", ".jinja", ".tiktoken"];
    !name.starts_with('.')
        && (ends.iter().any(|e| name.ends_with(e)) || matches!(name, "merges.txt" | "vocab.txt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(paths: &[&str], part: Option<&str>) -> Result<(Vec<String>, String)> {
        let file = |path: &&str| Remote { path: (*path).into(), bytes: None, announced: None };
        let files: Vec<Remote> = paths.iter().map(file).collect();
        let selection = select("o/r", &files, part)?;
        let names = selection.files.iter().map(|(f, local)| format!("{} {local}", f.path));
        Ok((names.collect(), selection.open))
    }

    fn opened(paths: &[&str], part: Option<&str>) -> String {
        chosen(paths, part).unwrap().1
    }

    const SEVERAL: &[&str] =
        &["README.md", "m-Q8_0.gguf", "m-Q4_0.gguf", "m.Q4_K_M.gguf", "mmproj-m-f16.gguf"];

    #[test]
    fn takes_the_only_gguf_or_the_best_at_four_bits() {
        assert_eq!(opened(&["README.md", "m.gguf"], None), "m.gguf");
        assert_eq!(opened(SEVERAL, None), "m.Q4_K_M.gguf");
        assert_eq!(opened(&["m-q8_0.gguf", "m-q4_0.gguf"], None), "m-q4_0.gguf");
        let none_preferred = chosen(&["a.gguf", "b.gguf"], None);
        assert!(matches!(none_preferred, Err(StoreError::Ambiguous { choices, .. })
            if choices == ["a.gguf", "b.gguf"]));
        let two_preferred = chosen(&["a-q4_0.gguf", "b-q4_0.gguf"], None);
        assert!(matches!(two_preferred, Err(StoreError::Ambiguous { .. })));
    }

    #[test]
    fn takes_the_gguf_that_is_named() {
        for (part, expected) in
            [("m-Q8_0.gguf", "m-Q8_0.gguf"), ("Q8_0", "m-Q8_0.gguf"), ("q4_k_m", "m.Q4_K_M.gguf")]
        {
            assert_eq!(opened(SEVERAL, Some(part)), expected);
        }
        for part in ["Q4", "Q4_K", "Q5_0", "README.md", "mmproj-m-f16.gguf"] {
            let error = chosen(SEVERAL, Some(part)).unwrap_err();
            assert!(
                matches!(&error, StoreError::NoSuchPart { available, .. }
                if available.len() == 3),
                "{part}"
            );
            assert!(error.hint().unwrap().contains("o/r:NAME"));
        }
        assert_eq!(opened(&["x/a.gguf", "y/a.gguf", "y/b.gguf"], Some("y/a.gguf")), "a.gguf");
        assert!(chosen(&["x/a.gguf", "y/a.gguf"], Some("a.gguf")).is_err());
    }

    #[test]
    fn takes_all_parts_of_a_split_gguf() {
        let files = &["q/m-00002-of-00002.gguf", "q/m-00001-of-00002.gguf", "o/m-q8_0.gguf"];
        let expected = vec![
            "q/m-00001-of-00002.gguf m-00001-of-00002.gguf".to_owned(),
            "q/m-00002-of-00002.gguf m-00002-of-00002.gguf".to_owned(),
        ];
        for part in ["q", "m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"] {
            let chosen = chosen(files, Some(part)).unwrap();
            assert_eq!(chosen, (expected.clone(), "m-00001-of-00002.gguf".to_owned()), "{part}");
        }
    }

    #[test]
    fn takes_what_a_safetensors_folder_is_read_from() {
        let files = &[
            ".gitattributes",
            "README.md",
            "config.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "tokenizer.json",
            "merges.txt",
            "pytorch_model.bin",
            "original/params.json",
            "onnx/model.onnx",
            "chat_template.jinja",
        ];
        let (names, open) = chosen(files, None).unwrap();
        assert_eq!(open, "");
        assert_eq!(names.len(), 7, "{names:?}");
        assert!(!names.iter().any(|name| name.contains("consolidated") || name.contains(".bin")));
    }

    #[test]
    fn takes_an_onnx_folder_wherever_it_is() {
        let at = |folder: &str| {
            ["genai_config.json", "model.onnx", "model.onnx.data"].map(|n| in_folder(folder, n))
        };
        let mut files: Vec<String> = vec!["README.md".into(), "config.json".into()];
        files.extend(at("cpu/cpu-int4-rtn"));
        let one: Vec<&str> = files.iter().map(String::as_str).collect();
        let (names, _) = chosen(&one, None).unwrap();
        assert_eq!(names.len(), 3);
        assert_eq!(names[0], "cpu/cpu-int4-rtn/genai_config.json genai_config.json");
        files.extend(at("cuda/fp16"));
        let two: Vec<&str> = files.iter().map(String::as_str).collect();
        assert_eq!(chosen(&two, None).unwrap().0, names);
        assert!(chosen(&two, Some("cuda/fp16")).unwrap().0[0].starts_with("cuda/fp16/"));
        files.extend(at("mobile/cpu-int4"));
        let three: Vec<&str> = files.iter().map(String::as_str).collect();
        assert!(matches!(chosen(&three, None), Err(StoreError::Ambiguous { choices, .. })
            if choices.len() == 3));
    }

    #[test]
    fn says_when_there_is_nothing_to_run() {
        for files in [&[][..], &["README.md", "pytorch_model.bin", "config.json"]] {
            assert!(matches!(chosen(files, None), Err(StoreError::NoModel(_))));
        }
    }
}
