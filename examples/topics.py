"""Topics of news stories: python topics.py bbc_news_counts.npz [--rank 5]

The .npz holds a CSR matrix of counts, 2,225 stories of BBC News x 2,949 words, and the words. The
counts are noisy, hence the Kullback-Leibler loss. A row of H is a topic: how often it uses each
word; W says how much of each topic is in a story. How many topics are there? Several ranks are
tried, from several starts each: a topic is worth its name if every start finds it. All runs share
each read of the counts. Needs pandas; with matplotlib, there is a picture too.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.sparse

import dask_nmf

RANKS = range(3, 9)
COLUMNS = ["error", "error_worst", "stability", "stability_least", "cophenetic", "passes"]


def chosen(found: dask_nmf.Scan, rank: int | None) -> int:
    """The rank that was asked for, or is suggested; else the last with components alike."""
    if rank is not None or len(found.ranks) == 1:
        return rank or found.ranks[0]
    suggestion = found.suggest()
    print(f"\n{suggestion}")
    return suggestion.rank or suggestion.votes["stability"] or found.ranks[0]


def draw(found: dask_nmf.Scan, rank: int, picture: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('\nno picture: pip install "dask_nmf[plots]"')
        return
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    dask_nmf.plot_ranks(found, ax=left)
    dask_nmf.plot_consensus(found, rank, ax=right)
    figure.savefig(picture, dpi=110)
    print(f"\npicture: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Topics of news stories.")
    parser.add_argument("data", type=Path, help="bbc_news_counts.npz")
    parser.add_argument("--rank", type=int, help="topics; none: as suggested")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="that are tried")
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--picture", type=Path, default="topics.png")
    options = parser.parse_args()

    with np.load(options.data) as file:
        parts = (file["data"], file["indices"], file["indptr"])
        V, words = scipy.sparse.csr_array(parts, shape=tuple(file["shape"])), file["words"]
    ranks = sorted({*options.ranks, *([options.rank] if options.rank else [])})
    found = dask_nmf.scan(
        V, ranks, restarts=options.restarts, loss="kullback-leibler", tol=1e-2, max_passes=30
    )
    print(found.table()[COLUMNS].round(3).to_string())

    rank = chosen(found, options.rank)
    topics = found.consensus(rank)
    W = topics.W.compute()
    shares = W.sum(axis=0) * topics.H.sum(axis=1) / V.sum()
    print(f"\n{rank} topics, {topics.left_out} of {rank * options.restarts} left out as strays")
    print("words  stability  the words it uses most")
    for j in np.argsort(-shares):
        top = " ".join(words[np.argsort(-topics.H[j])[:10]])
        print(f"{shares[j]:>5.0%}  {found.stability(rank)[j]:>9.2f}  {top}")
    draw(found, rank, options.picture)


if __name__ == "__main__":
    main()
