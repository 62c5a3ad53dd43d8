"""Results as tables: for the terminal, and as Markdown, LaTeX and CSV for papers. No files, no terminal."""
