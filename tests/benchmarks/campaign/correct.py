PART = "correct"
def run(*a): pass
def summary(l): return None
