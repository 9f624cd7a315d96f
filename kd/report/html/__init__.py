"""The report as one self-contained page: `view` and `images` say what it shows, `page` puts it together."""
