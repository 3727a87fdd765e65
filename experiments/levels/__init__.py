"""Do the alignment levels matter to a model?"""
