"""The report as one self-contained page: `view` and `fidelity` say what it shows, `page` puts it together."""
