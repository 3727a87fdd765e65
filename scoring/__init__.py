"""The mathematics of curation: CLIP scores, near-duplicates, levels. Arrays in, arrays out."""
