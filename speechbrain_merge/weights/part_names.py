"""The table of names: what each tensor of a known model is.

A row is a pattern and what a tensor that it matches is: its role and, in a
layer, its projection. Rows are tried from the top, and the first one that
matches counts. To teach the package another architecture, add rows here.

Three tables: tensors outside the layers, how the layers of a stack are
numbered, and tensors inside a layer (there the pattern sees only what follows
the number). ``(^|[.])`` at the start lets any prefix go before: a recoverable
(``whisper.``), a wrapper (``model.``) or a position in SpeechBrain's ModuleList
(``1.``).

Example
-------
>>> import re
>>> pattern, role, projection = INSIDE[0]
>>> bool(re.search(pattern, "self_attn_layer_norm.weight")), role
(True, 'normalization')

Authors
 * The speechbrain_merge authors 2026
"""

# pattern, stack, role, projection
OUTSIDE = (
    # --- the way in: waveform, spectrogram or patches to the first layer
    # SpeechBrain's convolutional front end, and its projection
    (r"(^|[.])convblock_\d+[.]", "encoder", "front_end", ""),
    (r"(^|[.])custom_src_module[.]", "encoder", "front_end", ""),
    # Whisper
    (r"(^|[.])encoder[.]conv[12][.]", "encoder", "front_end", ""),
    (r"(^|[.])_mel_filters$", "encoder", "front_end", ""),
    # wav2vec2, HuBERT, WavLM
    (r"(^|[.])feature_extractor[.]conv_layers[.]", "encoder", "front_end", ""),
    (r"(^|[.])feature_projection[.]", "encoder", "front_end", ""),
    # BEATs, ViT
    (r"(^|[.])(patch_embeddings?|post_extract_proj)[.]", "encoder", "front_end", ""),
    # --- embeddings
    # SpeechBrain: tokens, and tables of positions
    (r"(^|[.])custom_tgt_module[.]", "decoder", "embedding", "token"),
    # ... its transducers
    (r"^\d+[.]Embedding[.]weight$", "decoder", "embedding", "token"),
    (r"(^|[.])positional_encoding_decoder[.]", "decoder", "embedding", "position"),
    # ... those inside a hyper-mixing layer belong to the layer
    (r"^(?!.*layers[.]\d).*positional_encoding[.]", "encoder", "embedding", "position"),
    # Whisper
    (r"(^|[.])decoder[.]embed_tokens[.]", "decoder", "embedding", "token"),
    (r"(^|[.])decoder[.]embed_positions[.]", "decoder", "embedding", "position"),
    (r"(^|[.])encoder[.]embed_positions[.]", "encoder", "embedding", "position"),
    # wav2vec2, HuBERT, WavLM, BEATs: the positional convolution
    (r"(^|[.])pos_conv_embed[.]batch_norm[.]", "encoder", "normalization", ""),
    (r"(^|[.])pos_conv(_embed)?[.]", "encoder", "embedding", "position"),
    (r"(^|[.])masked_spec_embed$", "encoder", "embedding", "mask"),
    # BERT, ViT
    (r"(^|[.])word_embeddings[.]", "encoder", "embedding", "token"),
    (r"(^|[.])token_type_embeddings[.]", "encoder", "embedding", "type"),
    (r"(^|[.])position_embeddings([.]|$)", "encoder", "embedding", "position"),
    (r"(^|[.])(position_ids|token_type_ids)$", "encoder", "embedding", "position"),
    (r"(^|[.])cls_token$", "encoder", "embedding", "class"),
    (r"(^|[.])mask_token$", "encoder", "embedding", "mask"),
    (r"(^|[.])embeddings[.]LayerNorm[.]", "encoder", "normalization", ""),
    # --- between the encoder and what uses it
    (r"(^|[.])adapter[.](layers|proj)", "encoder", "adapter", ""),
    # --- the norm that closes a stack
    (r"(^|[.])encoder[.](norm|layer_norm|layernorm)[.]", "encoder", "normalization", ""),
    (r"(^|[.])decoder[.](norm|layer_norm|layernorm)[.]", "decoder", "normalization", ""),
    # ViT, BEATs
    (r"^((?!coder[.]).)*(?<![^.])(layernorm|layer_norm)[.](weight|bias)$", "encoder", "normalization", ""),
    # --- the way out: heads over tokens, classes or codebooks
    (r"(^|[.])(proj_out|lm_head|classifier|predictor|pooler|cls)[.]", "", "output", ""),
    (r"(^|[.])(ctc_lin|seq_lin|output_lin)[.]", "", "output", ""),
    (r"(^|[.])(quantizer|project_hid|project_q)[.]", "", "output", ""),
    # SpeechBrain saves CNN, Transformer, seq_lin and ctc_lin as one ModuleList
    (r"^((?!encoder|decoder|layers)[A-Za-z_]\w*[.])*\d+[.](w[.])?(weight|bias)$", "", "output", ""),
    # ... and puts a few layers between a pretrained encoder and the head
    (r"^((?!encoder|decoder|layers)\w+[.])*linear_?\d*[.]w[.]", "", "feed_forward", ""),
    (r"^((?!encoder|decoder|layers)\w+[.])*(bn|norm)_?\d*[.]norm[.]", "", "normalization", ""),
)  # fmt: skip

# pattern with the groups `layer` and `rest`, stack
STACKS = (
    (r"(^|[.])decoder[.]layers?[.](?P<layer>\d+)[.](?P<rest>.+)$", "decoder"),
    (r"(^|[.])encoder[.]layers?[.](?P<layer>\d+)[.](?P<rest>.+)$", "encoder"),
    # ViT, since transformers 5
    (
        r"(^|[.])layers[.](?P<layer>\d+)[.]"
        r"(?P<rest>(attention|mlp|layernorm_before|layernorm_after)[.].+)$",
        "encoder",
    ),
    # Any other numbered layers
    (r"(^|[.])(layers?|blocks)[.](?P<layer>\d+)[.](?P<rest>.+)$", ""),
)

# Names of the projections of attention, as they are found
QUERY = r"(q_proj|query|q_lin|linear_q)"
KEY = r"(k_proj|key|k_lin|linear_k)"
VALUE = r"(v_proj|value|v_lin|linear_v)"
OUT = r"(out_proj|o_proj|output[.]dense|out_lin|linear_out)"
CROSS = r"^(encoder_attn|multihead_attn|crossattention)[.](\w+[.])*"
SELF = r"^(self_attn|self_att|mha_layer|attention)[.](\w+[.])*"

# pattern, role, projection
INSIDE = (
    # --- norms first: their names hold those of what they normalise
    (r"(^|[._])(layer_?norm|LayerNorm|batch_norm)(\w*)[.]", "normalization", ""),
    (r"^norm(\d|_mhsa|_conv)?[.]", "normalization", ""),
    (r"^ffn_module[12][.]0[.]", "normalization", ""),
    (r"^convolution_module[.]after_conv[.]0[.]", "normalization", ""),
    (r"^convolution_branch[.]csgu[.]norm[.]", "normalization", ""),
    # --- adapters of single layers (MMS), with their norms
    (r"^adapter_layer[.]", "adapter", ""),
    # --- cross-attention
    (CROSS + r"in_proj_(weight|bias)$", "cross_attention", "qkv"),
    (CROSS + QUERY + r"[.]", "cross_attention", "q"),
    (CROSS + KEY + r"[.]", "cross_attention", "k"),
    (CROSS + VALUE + r"[.]", "cross_attention", "v"),
    (CROSS + OUT + r"[.]", "cross_attention", "out"),
    # --- self-attention
    (SELF + r"in_proj_(weight|bias)$", "attention", "qkv"),
    (SELF + QUERY + r"[.]", "attention", "q"),
    (SELF + KEY + r"[.]", "attention", "k"),
    (SELF + VALUE + r"[.]", "attention", "v"),
    (SELF + OUT + r"[.]", "attention", "out"),
    # ... relative positions: SpeechBrain, WavLM, BEATs
    (SELF + r"(linear_pos|pos_bias_[uv])", "attention", "position"),
    (SELF + r"(gru_rel_pos|rel_attn_embed)", "attention", "position"),
    (SELF + r"(grep_|relative_attention_bias)", "attention", "position"),
    (SELF + r"positional_encoding[.]", "attention", "position"),
    # ... hyper-mixing, which takes the place of attention
    (SELF + r"(w1_gen|w2_gen)[.]", "attention", "mixing"),
    # --- feed-forward
    (r"^pos_ffn[.]ffn[.]0[.]", "feed_forward", "up"),
    (r"^pos_ffn[.]ffn[.]3[.]", "feed_forward", "down"),
    (r"^ffn_module[12][.]1[.]ffn[.]0[.]", "feed_forward", "up"),
    (r"^ffn_module[12][.]1[.]ffn[.]3[.]", "feed_forward", "down"),
    (r"^(mlp[.])?fc1[.]", "feed_forward", "up"),
    (r"^(mlp[.])?fc2[.]", "feed_forward", "down"),
    (r"^(feed_forward[.]intermediate_dense|intermediate[.]dense)[.]", "feed_forward", "up"),
    (r"^(feed_forward[.]output_dense|output[.]dense)[.]", "feed_forward", "down"),
    # --- convolution: Conformer, Branchformer
    (r"^convolution_module[.]bottleneck[.]", "convolution", "up"),
    (r"^convolution_module[.](conv|dw_conv)[.]", "convolution", "depthwise"),
    (r"^convolution_module[.]after_conv[.]2[.]", "convolution", "down"),
    (r"^convolution_branch[.]pre_channel_proj[.]", "convolution", "up"),
    (r"^convolution_branch[.]csgu[.]", "convolution", "depthwise"),
    (r"^convolution_branch[.]post_channel_proj[.]", "convolution", "down"),
    # ... where the branches of a Branchformer come together
    (r"^merge_proj[.]", "convolution", "join"),
)  # fmt: skip

# Norms, whatever they are a part of: a front end, say
NORM = r"(^|[._])(layer_?norm|batch_?norm|LayerNorm|norm)(_?\d+)?[.]"

# How a name ends, and the kind that this is, where it is not the last word
KINDS = (
    (r"in_proj_weight$", "weight"),
    (r"in_proj_bias$", "bias"),
    (r"(^|[.])pos_bias_[uv]$", "bias"),
    (r"(^|[.])fc\d_weights$", "weight"),
    (r"(^|[.])fc\d_biases$", "bias"),
    (r"(^|[.])(weight_g|parametrizations[.]weight[.]original0)$", "magnitude"),
    (r"(^|[.])(weight_v|parametrizations[.]weight[.]original1)$", "direction"),
)
