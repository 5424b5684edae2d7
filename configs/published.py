"""Numbers of the paper, to print beside ours: Venkatraman et al. 2024, table 2, verbatim.

Mean ± standard deviation across classes. Its FID is a Fréchet distance from *images of the class* in 768 features of
Inception-v3, and its diversity is taken in these features too; ours is a distance from exact posterior samples in the
features of the project's classifier. E[log r] is of another prior and another classifier. So compare rows, not columns.
"""

SOURCE = (
    "Venkatraman et al. 2024 (arXiv 2405.20971), table 2: mean ± standard deviation across classes, other networks, "
    "FID in 768 features of Inception-v3 from images of the class"
)
COLUMNS = ("E[log r]", "FID", "diversity")
MNIST = {
    "posterior_sampling": ("-2.1597 ± 0.423", "1.2913 ± 0.410", "0.1609 ± 0.000"),
    "loss_guidance": ("-2.1389 ± 0.480", "1.2873 ± 0.412", "0.1600 ± 0.000"),
    "ddpo": ("(-1.5 ± 4.7)e-3", "1.5822 ± 0.583", "0.1350 ± 0.005"),
    "dpok": ("-0.1379 ± 0.225", "1.2063 ± 0.316", "0.1442 ± 0.004"),
    "rtb": ("-0.1734 ± 0.194", "1.1823 ± 0.288", "0.1474 ± 0.003"),
}
MNIST_EVEN_ODD = {
    "posterior_sampling": ("-1.2270 ± 0.202", "1.1498 ± 0.182", "0.1713 ± 0.000"),
    "loss_guidance": ("-1.1720 ± 0.199", "1.1445 ± 0.184", "0.1600 ± 0.000"),
    "ddpo": ("(-8.6 ± 12.3)e-11", "1.8024 ± 0.423", "0.1314 ± 0.002"),
    "dpok": ("-0.0783 ± 0.082", "1.2536 ± 0.206", "0.1631 ± 0.007"),
    "rtb": ("-0.1816 ± 0.175", "1.1794 ± 0.171", "0.1679 ± 0.004"),
}


def beside(rows: dict) -> dict:
    """As ``config.table.published`` has it."""
    return {"source": SOURCE, "columns": COLUMNS, "rows": rows}
