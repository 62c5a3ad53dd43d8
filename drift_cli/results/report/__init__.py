"""A run as one HTML file that needs no network and no server: `document` gathers what it says, `html` writes the page, `page/` holds its parts."""
