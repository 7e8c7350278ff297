"""Language and vision-language models of Hugging Face transformers."""
