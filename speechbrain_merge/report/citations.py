"""Who to cite for a merge method.

Authors
 * The speechbrain_merge authors 2026
"""

# registered name -> authors, title, venue, arXiv number where there is one
CITATIONS = {
    "ace": (
        "Xu et al., ACE-Merging: Data-Free Model Merging with Adaptive "
        "Covariance Estimation, CVPR 2026",
        "2603.02945",
    ),
    "adamerging": (
        "Yang et al., AdaMerging: Adaptive Model Merging for Multi-Task "
        "Learning, ICLR 2024",
        "2310.02575",
    ),
    "analogy": (
        "Su et al., Task Arithmetic can Mitigate Synthetic-to-Real Gap in "
        "Automatic Speech Recognition, EMNLP 2024",
        "2406.02925",
    ),
    "attention_merge": (
        "Sundar et al., Multimodal Attention Merging for Improved Speech "
        "Recognition and Audio Event Classification, ICASSP Workshops 2024",
        "2312.14378",
    ),
    "average": (
        "Wortsman et al., Model soups: averaging weights of multiple "
        "fine-tuned models improves accuracy without increasing inference "
        "time, ICML 2022",
        "2203.05482",
    ),
    "boosted": (
        "Skorobogat et al., Subspace-Boosted Model Merging, 2025",
        "2506.16506",
    ),
    "boosted_tsv_m": (
        "Carvalho, Teixeira, Rolland and Abad, Interspeech 2026",
        "2603.05354",
    ),
    "breadcrumbs": (
        "Davari and Belilovsky, Model Breadcrumbs: Scaling Multi-Task Model "
        "Merging with Sparse Masks, ECCV 2024",
        "2312.06795",
    ),
    "calibrated": (
        "Zhang et al., When Shared Knowledge Hurts: Spectral Over-Accumulation "
        "in Model Merging, ICML 2026",
        "2602.05536",
    ),
    "consensus": (
        "Wang et al., Localizing Task Information for Improved Model Merging "
        "and Compression, ICML 2024",
        "2405.07813",
    ),
    "dare": (
        "Yu et al., Language Models are Super Mario: Absorbing Abilities from "
        "Homologous Models as a Free Lunch, ICML 2024",
        "2311.03099",
    ),
    "della": (
        "Deep, Bhardwaj and Poria, DELLA-Merging: Reducing Interference in "
        "Model Merging through Magnitude-Based Sampling, 2024",
        "2406.11617",
    ),
    "extreme": (
        "Marczak et al., MagMax: Leveraging Model Merging for Seamless "
        "Continual Learning, ECCV 2024",
        "2407.06322",
    ),
    "fisher": (
        "Matena and Raffel, Merging Models with Fisher-Weighted Averaging, "
        "NeurIPS 2022",
        "2111.09832",
    ),
    "iso_c": (
        "Marczak et al., No Task Left Behind: Isotropic Model Merging with "
        "Common and Task-Specific Subspaces, ICML 2025",
        "2502.04959",
    ),
    "karcher": (
        "Karcher, Riemannian center of mass and mollifier smoothing, "
        "Communications on Pure and Applied Mathematics 30, 1977",
        None,
    ),
    "layer_scaled": (
        "Wang et al., LiNeS: Post-training Layer Scaling Prevents Forgetting "
        "and Enhances Model Merging, ICLR 2025",
        "2410.17146",
    ),
    "model_stock": (
        "Jang, Yun and Han, Model Stock: All we need is just a few fine-tuned "
        "models, ECCV 2024",
        "2403.19522",
    ),
    "monosoup": (
        "Hazimeh et al., Model soups need only one ingredient, 2026",
        "2602.09689",
    ),
    "multislerp": (
        "Goddard et al., Arcee's MergeKit: A Toolkit for Merging Large "
        "Language Models, EMNLP Industry Track 2024",
        "2403.13257",
    ),
    "nuslerp": (
        "Goddard et al., Arcee's MergeKit: A Toolkit for Merging Large "
        "Language Models, EMNLP Industry Track 2024",
        "2403.13257",
    ),
    "opcm": (
        "Tang et al., Merging Models on the Fly Without Retraining: A "
        "Sequential Approach to Scalable Continual Model Merging, NeurIPS 2025",
        "2501.09522",
    ),
    "optimal_transport": (
        "Fu et al., OTF: Optimal Transport based Fusion of Supervised and "
        "Self-Supervised Learning Models for Automatic Speech Recognition, "
        "Interspeech 2023",
        "2306.02541",
    ),
    "pcb": (
        "Du et al., Parameter Competition Balancing for Model Merging, "
        "NeurIPS 2024",
        "2410.02396",
    ),
    "regmean": (
        "Jin et al., Dataless Knowledge Fusion by Merging Weights of Language "
        "Models, ICLR 2023",
        "2212.09849",
    ),
    "sce": (
        "Wan et al., FuseChat: Knowledge Fusion of Chat Models, 2024",
        "2408.07990",
    ),
    "slerp": (
        "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
        None,
    ),
    "task_arithmetic": (
        "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023",
        "2212.04089",
    ),
    "ties": (
        "Yadav et al., TIES-Merging: Resolving Interference When Merging "
        "Models, NeurIPS 2023",
        "2306.01708",
    ),
    "tsv_m": (
        "Gargiulo et al., Task Singular Vectors: Reducing Task Interference "
        "in Model Merging, CVPR 2025",
        "2412.00081",
    ),
    "wudi": (
        "Cheng et al., Whoever Started the Interference Should End It: "
        "Guiding Data-Free Model Merging via Task Vectors, ICML 2025",
        "2503.08099",
    ),
}
# the same paper as another method
CITATIONS["iso_cts"] = CITATIONS["iso_c"]
CITATIONS["learnable_attention_merge"] = CITATIONS["attention_merge"]


def citation(method):
    """Markdown that cites a method, or nothing for one that is not known.

    Arguments
    ---------
    method : str
        Registered name.

    Returns
    -------
    str or None

    Example
    -------
    >>> citation("slerp")
    'Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985'
    >>> print(citation("my_own"))
    None
    """
    if method not in CITATIONS:
        return None
    words, number = CITATIONS[method]
    if number:
        words += f", [arXiv:{number}](https://arxiv.org/abs/{number})"
    return words
