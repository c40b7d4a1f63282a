PART = "calibration"
def run(*a): pass
def summary(l): return None
