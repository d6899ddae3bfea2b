"""Models in local Hugging Face folders: loaded, judged on text, pruned and saved. Nothing is fetched."""
