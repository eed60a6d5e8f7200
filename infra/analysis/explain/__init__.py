"""`make explain`: why is it not ready? One sentence for each cause, the most fundamental first.

`snapshot` reads the cluster into plain data, `facts` finds things in it, the rules are functions from facts to findings
(`admission`, `placement`, `containers`, `network`), and `causes` orders them and leaves out what follows from another finding.
"""
